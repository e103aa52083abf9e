"""Which rows go to which site: iid, by size, Dirichlet, pathological, natural, whole units.

The few schemes here are written out rather than taken from flwr-datasets, whose partitioners need
Hugging Face datasets, pandas and matplotlib (2 s of import) and take an integer seed;
``motet.data.from_flwr`` adapts any of them.

Every function returns one int64 tensor of sorted row positions per site: disjoint, together all
rows, none of them empty. Only where sites draw their rows (``Draw``) may they have the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from motet.core.batch import Column, Dataset
from motet.core.errors import ConfigError, DataError
from motet.core.graph import GRAPH
from motet.data._common import codes_of, column_of, first_rows, parsed
from motet.data.drawn import drawing
from motet.data.graphs import cut_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

Law: TypeAlias = Literal["linear", "square", "exponential"]
Rng: TypeAlias = np.random.Generator
Rows: TypeAlias = Annotated[int, Field(ge=1)]
REDRAWS = 1000


def iid(n: int, sites: int, rng: Rng) -> list[Tensor]:
    """Rows at random, sizes that differ by one at most."""
    _check_sites(n, sites)
    return _tensors(np.array_split(rng.permutation(n), sites))


def by_size(
    n: int, sites: int, law: Law | Sequence[float] = "linear", rng: Rng | None = None
) -> list[Tensor]:
    """Rows in sizes proportional to ``law``: i, i^2 or e^i for site i = 1, 2 ..., or own weights.

    Sizes are rounded, and a site that would be left empty gets one row from the largest. Rows
    are drawn at random; without ``rng`` they stay in order, as contiguous shards.
    """
    _check_sites(n, sites)
    order = np.arange(n) if rng is None else rng.permutation(n)
    shares = _weights(law, sites)
    cuts = np.floor(np.cumsum(shares / shares.sum()) * n + 0.5).astype(np.int64)
    sizes = np.diff(cuts, prepend=0)
    while sizes.min() < 1:
        sizes[sizes.argmax()] -= 1
        sizes[sizes.argmin()] += 1
    return _tensors(np.split(order, np.cumsum(sizes)[:-1]))


def dirichlet(
    labels: Column,
    sites: int,
    alpha: float,
    min_rows: int,
    rng: Rng,
    *,
    balanced: bool = False,
) -> list[Tensor]:
    """Each class is shared out in proportions drawn from Dirichlet(alpha) over the sites.

    Source: Hsu, Qi and Brown, arXiv 1909.06335. The draw is repeated until every site has
    ``min_rows``; DataError after 1000 draws. ``balanced``: a site that already has its share of
    n / sites rows gets nothing of the classes still to come, which evens out the sizes.
    """
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha={alpha}: write a number above 0")
    codes, names = codes_of(labels)
    n = len(codes)
    _check_sites(n, sites, min_rows)
    sizes = np.bincount(codes.numpy(), minlength=len(names))
    for _ in range(REDRAWS):
        counts = _dirichlet_counts(sizes, sites, alpha, balanced, rng)
        if counts.sum(axis=0).min() >= min_rows:
            return _deal(codes, counts, rng)
    raise DataError(
        f"no draw in {REDRAWS} gave each of {sites} sites min_rows={min_rows} of the {n} rows with "
        f"alpha={alpha:g}: raise alpha, lower min_rows, take fewer sites or set balanced to true"
    )


def pathological(labels: Column, sites: int, classes_per_site: int, rng: Rng) -> list[Tensor]:
    """Each site owns rows of exactly ``classes_per_site`` classes, a class is shared out evenly.

    Source: McMahan et al., AISTATS 2017, with classes drawn directly instead of shards; all
    classes are used about equally often.
    """
    codes, names = codes_of(labels)
    _check_sites(len(codes), sites)
    sizes = np.bincount(codes.numpy(), minlength=len(names))
    least = -(-len(names) // sites)
    if not least <= classes_per_site <= len(names):
        raise DataError(
            f"classes_per_site={classes_per_site}: with {len(names)} classes at {sites} sites "
            f"write a number from {least} to {len(names)}"
        )
    owners = np.zeros((len(names), sites), dtype=np.int64)
    for site in range(sites):
        # Least used classes first, ties at random: this is what covers all classes.
        order = np.lexsort((rng.random(len(names)), owners.sum(axis=1)))
        owners[order[:classes_per_site], site] = 1
    for name, size, wanted in zip(names, sizes, owners.sum(axis=1), strict=True):
        if size < wanted:
            raise DataError(
                f"class {name} has {size} rows for {wanted} sites; take fewer sites or a smaller "
                f"classes_per_site than {classes_per_site}"
            )
    cuts = np.cumsum(owners, axis=1) * sizes[:, None] // owners.sum(axis=1, keepdims=True)
    return _deal(codes, np.diff(cuts, prepend=0), rng)


def class_groups(
    labels: Column,
    sites: int,
    groups: Sequence[Sequence[int]],
    rows: int | Sequence[int] | None,
    rng: Rng,
) -> list[Tensor]:
    """Site i has the classes of group i modulo the number of groups, each shared out evenly.

    groups: numbers of classes in sorted order. rows: so many of each class at a site, or as many
    as there are groups, one number for each; what is left over goes to nobody, as do classes
    without a group. None shares all of them out.
    """
    codes, names = codes_of(labels)
    _check_sites(len(codes), sites)
    each = [rows] * len(groups) if rows is None or isinstance(rows, int) else list(rows)
    if len(each) != len(groups):
        raise ConfigError(f"partition.rows: write one number, or {len(groups)}, one per group")
    counts = np.zeros((len(names), sites), dtype=np.int64)
    for label, name in enumerate(names):
        owners = [site for site in range(sites) if label in groups[site % len(groups)]]
        size = int((codes == label).sum())
        wanted = sum(each[site % len(groups)] or 1 for site in owners)
        if size < wanted:
            raise DataError(
                f"class {name} has {size} rows, and {len(owners)} sites want {wanted}; take fewer "
                "sites or fewer rows"
            )
        for place, site in enumerate(owners):
            share = size * (place + 1) // len(owners) - size * place // len(owners)
            counts[label, site] = each[site % len(groups)] or share
    if not counts.sum(axis=0).min():
        raise DataError(f"a site would have no row: there are classes 0 to {len(names) - 1} alone")
    return _deal(codes, counts, rng)


def natural(ids: Column, sites: int | None = None) -> list[Tensor]:
    """One site per id (drawing style, language, author ...) in the order of the sorted ids.

    With ``sites`` whole ids are put together into that many sites, largest id first, each to
    the site with the fewest rows so far.
    """
    codes, names = codes_of(ids)
    sites = len(names) if sites is None else sites
    if not 1 <= sites <= len(names):
        few = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        raise DataError(f"sites={sites}: there are {len(names)} ids ({few}); write at most that")
    owner = np.arange(len(names))
    if sites < len(names):
        sizes = np.bincount(codes.numpy(), minlength=len(names))
        filled = np.zeros(sites, dtype=np.int64)
        for name in np.argsort(-sizes, kind="stable"):
            owner[name] = filled.argmin()
            filled[owner[name]] += sizes[name]
    site_of = owner[codes.numpy()]
    return _tensors([np.flatnonzero(site_of == site) for site in range(sites)])


def by_unit(units: Column, partition_of_units: Sequence[Tensor]) -> list[Tensor]:
    """Sends all rows of a unit (all pictures of a concept) to the site that has the unit.

    units: one id per row. partition_of_units: per site, positions among the SORTED distinct ids.
    """
    codes, names = codes_of(units)
    if not torch.equal(torch.cat(list(partition_of_units)).sort()[0], torch.arange(len(names))):
        raise ValueError(f"every one of the {len(names)} units must be at exactly one site")
    owner = torch.zeros(len(names), dtype=torch.int64)
    for site, part in enumerate(partition_of_units):
        owner[part] = site
    site_of = owner[codes]
    return [(site_of == site).nonzero().flatten() for site in range(len(partition_of_units))]


def _check_sites(n: int, sites: int, min_rows: int = 1) -> None:
    if sites < 1:
        raise ConfigError(f"sites={sites}: write at least 1")
    if sites * max(min_rows, 1) > n:
        least = f" with min_rows={min_rows}" if min_rows > 1 else ""
        raise DataError(f"{n} rows are too few for {sites} sites{least}; take fewer sites")


def _weights(law: Law | Sequence[float], sites: int) -> NDArray[np.float64]:
    steps = np.arange(1, sites + 1, dtype=np.float64)
    if isinstance(law, str):
        # e^(i - sites) has the proportions of e^i and cannot overflow.
        laws = {"linear": steps, "square": steps**2, "exponential": np.exp(steps - sites)}
        if law not in laws:
            raise ConfigError(f"law: there is no {law!r}; write one of {', '.join(laws)}")
        return laws[law]
    weights = np.asarray(law, dtype=np.float64)
    if weights.shape != (sites,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ConfigError(f"law: write {sites} positive weights, one per site, not {list(law)}")
    return weights


def _dirichlet_counts(
    sizes: NDArray[np.int64], sites: int, alpha: float, balanced: bool, rng: Rng
) -> NDArray[np.int64]:
    """How many rows of each class each site gets: int64 [classes, sites]."""
    counts = np.zeros((len(sizes), sites), dtype=np.int64)
    filled = np.zeros(sites, dtype=np.int64)
    for row, size in zip(counts, sizes, strict=True):
        shares = rng.dirichlet(np.full(sites, alpha))
        if balanced:
            room = filled * sites < sizes.sum()
            shares = shares * room
            # A tiny alpha can put all of the mass on sites that are full.
            shares = shares / shares.sum() if shares.sum() > 0 else room / room.sum()
        # Without the 1e-6 a sum of shares just below 1 gives a row to a last site that is full.
        cuts = np.floor(np.cumsum(shares) * size + 1e-6).astype(np.int64)
        cuts[-1] = size
        row[:] = np.diff(cuts, prepend=0)
        filled += row
    return counts


def _deal(codes: Tensor, counts: NDArray[np.int64], rng: Rng) -> list[Tensor]:
    """Deals the rows of each class at random in these numbers: counts [classes, sites]."""
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(counts.shape[1])]
    for code, row in enumerate(counts):
        members = rng.permutation(np.flatnonzero(codes.numpy() == code))[: row.sum()]
        for part, piece in zip(parts, np.split(members, np.cumsum(row)[:-1]), strict=True):
            part.append(piece)
    return _tensors([np.concatenate(part) for part in parts])


def _tensors(parts: Sequence[NDArray[np.int64]]) -> list[Tensor]:
    return [torch.from_numpy(np.sort(part).astype(np.int64)) for part in parts]


class _Scheme(BaseModel):
    """Common to all schemes: rows or whole units are cut, and a data set is asked for columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str | None = Field(None, description="column whose equal rows stay together: concept")

    def apply(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        """Row positions of each site; ConfigError for a column that the data set lacks.

        A unit counts as one row, with the label of its first.
        """
        if self.unit is None:
            return self._cut(dataset, sites, rng)
        ids = column_of(dataset, self.unit, "partition.unit")
        codes, names = codes_of(ids)
        units = dataset.only([]).take(first_rows(codes, len(names)))
        try:
            return by_unit(ids, self._cut(units, sites, rng))
        except DataError as error:
            raise DataError(f"with each {self.unit} counted as one row, {error}") from None

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        return iid(len(dataset), sites, rng)


class Iid(_Scheme):
    """Rows at random, equal sizes."""

    name: Literal["iid"] = "iid"


class BySize(_Scheme):
    """Rows at random, sizes by a law."""

    name: Literal["by_size"] = "by_size"
    law: Law | tuple[float, ...] = Field("linear", description="sizes i, i^2, e^i, or weights")

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        return by_size(len(dataset), sites, self.law, rng)


class Dirichlet(_Scheme):
    """Label skew: each class shared out by a Dirichlet draw."""

    name: Literal["dirichlet"] = "dirichlet"
    by: str = Field("labels", description="labels, or a further column such as group")
    alpha: float = Field(0.3, ge=1e-3, le=1e6, description="concentration; small is more skewed")
    min_rows: int = Field(1, ge=1, description="rows (or units) that every site gets at least")
    balanced: bool = Field(False, description="sites at n / sites rows get no further class")

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        labels = column_of(dataset, self.by, "partition.by")
        return dirichlet(labels, sites, self.alpha, self.min_rows, rng, balanced=self.balanced)


class Pathological(_Scheme):
    """Label skew: a fixed number of classes per site."""

    name: Literal["pathological"] = "pathological"
    by: str = Field("labels", description="labels, or a further column such as group")
    classes_per_site: int = Field(2, ge=1, description="classes that a site owns")

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        labels = column_of(dataset, self.by, "partition.by")
        return pathological(labels, sites, self.classes_per_site, rng)


class ClassGroups(_Scheme):
    """Label skew: sites in turn own these groups of classes, and those of a group are alike."""

    name: Literal["class_groups"] = "class_groups"
    groups: tuple[Annotated[tuple[int, ...], Field(min_length=1)], ...] = Field(
        min_length=1, description="numbers of the classes of each group: [[0, 1], [2, 3]]"
    )
    rows: Rows | Annotated[tuple[Rows, ...], Field(min_length=1)] | None = Field(
        None, description="rows of each class at a site, or one number per group; null for all"
    )

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        labels = column_of(dataset, "labels", "partition.by")
        return class_groups(labels, sites, self.groups, self.rows, rng)


class Natural(_Scheme):
    """One site per drawing style, language, author ..., or several of them per site."""

    name: Literal["natural"] = "natural"
    by: str = Field(description="the column of natural ids, such as style")

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        return natural(column_of(dataset, self.by, "partition.by"), sites)


class Draw(_Scheme):
    """Every site draws its own rows, whatever others draw: populations of any size.

    A row may be at many sites, and at some of them at none. Sites are made when they are asked.
    """

    name: Literal["draw"] = "draw"
    rows: int = Field(50, ge=1, description="rows (or units) per site, each at most once at a site")

    def apply(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        """Row positions of each site, drawn one after the other."""
        draw = self.over(dataset)
        return [draw(rng) for _ in range(sites)]

    def over(self, dataset: Dataset) -> Callable[[Rng], Tensor]:
        """A function that draws one site's row positions, sorted; DataError for too few rows."""
        if self.unit is None:
            return drawing(torch.arange(len(dataset)), self.rows, "row")
        codes, _ = codes_of(column_of(dataset, self.unit, "partition.unit"))
        return drawing(codes, self.rows, self.unit)


class Clusters(_Scheme):
    """Parts of a graph with few links between them, or several overlapping sites per part."""

    name: Literal["clusters"] = "clusters"
    per_part: int = Field(1, ge=1, description="sites per part; above 1 each holds a share of it")
    share: float = Field(0.5, gt=0, le=1, description="random share of a part's nodes, then")

    def _cut(self, dataset: Dataset, sites: int, rng: Rng) -> list[Tensor]:
        column = dataset.columns.get(GRAPH)
        if not isinstance(column, Tensor):
            raise ConfigError(f"partition: clusters divides graphs; the data have no {GRAPH!r}")
        return cut_graph(column, sites, rng, per_part=self.per_part, share=self.share)


Partition: TypeAlias = Annotated[
    Annotated[
        Iid | BySize | Dirichlet | Pathological | ClassGroups | Natural | Draw | Clusters,
        Field(discriminator="name"),
    ],
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]


def parse_partition(value: object, where: str = "partition") -> Partition:
    """A checked scheme from plain values or a bare name; ConfigError names field and value."""
    scheme: Partition = parsed(Partition, value, where)
    return scheme
