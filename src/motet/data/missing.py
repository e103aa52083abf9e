"""Missing modalities: sites that lack one altogether, and rows that lack one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, TypeAlias

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from motet.core.batch import Column, Dataset
from motet.core.errors import ConfigError, DataError
from motet.data._common import parsed

Rng: TypeAlias = np.random.Generator
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


class Missing(BaseModel):
    """Which share of the sites, and of the rows of each site, lacks a modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: dict[str, Share] = Field(
        default_factory=dict, description="modality: share of the sites that lack it altogether"
    )
    rows: dict[str, Share] = Field(
        default_factory=dict, description="modality: share of each site's rows that lack it"
    )

    def apply(self, datasets: Sequence[Dataset], rng: Rng) -> list[Dataset]:
        """The sites' data sets without what is missing; no site and no row is left with nothing.

        What one site loses at row level does not depend on the data of the others.
        """
        for field in ("sites", "rows"):
            _check_known(getattr(self, field), datasets, f"missing.{field}")
        at_sites, *at_rows = rng.spawn(1 + len(datasets))
        left = _without_at_sites(datasets, self.sites, at_sites)
        shares = [{m: s for m, s in self.rows.items() if m in data.columns} for data in left]
        return [
            drop_rows(data, share, own) if len(data.columns) > 1 else data
            for data, share, own in zip(left, shares, at_rows, strict=True)
        ]


def parse_missing(value: object, where: str = "missing") -> Missing:
    """A checked ``Missing`` from plain values; ConfigError names field and value."""
    missing: Missing = parsed(Missing, value, where)
    return missing


def without(dataset: Dataset, modality: str) -> Dataset:
    """The data set of a site that lacks this modality; rows that had no other are left out."""
    others = [name for name in dataset.modalities if name != modality]
    if not others:
        raise DataError(f"{modality} is the only modality; without it nothing would be left")
    left = dataset.only(others)
    seen = torch.stack([left.present[name] for name in others]).any(dim=0)
    return left if bool(seen.all()) else left.take(seen.nonzero().flatten())


def drop_rows(dataset: Dataset, shares: Mapping[str, float], rng: Rng) -> Dataset:
    """Takes each modality from this share of the rows that have it, never a row's last one.

    The mask ``present`` becomes False and the value a filler: zeros, or the empty string. Raises
    DataError when the shares of several modalities cannot be reached together.
    """
    present = {name: mask.clone() for name, mask in dataset.present.items()}
    columns = dict(dataset.columns)
    for name in sorted(shares):
        if name not in columns:
            raise ConfigError(f"there is no modality {name!r}; write one of {sorted(columns)}")
        have = torch.stack(list(present.values())).sum(dim=0)
        free = (present[name] & (have > 1)).nonzero().flatten()
        wanted = round(shares[name] * int(present[name].sum()))
        if wanted > len(free):
            raise DataError(
                f"{name} should go from {wanted} rows, but only {len(free)} have another modality "
                f"left; lower the shares {dict(shares)}"
            )
        gone = free[torch.from_numpy(rng.permutation(len(free))[:wanted])]
        present[name][gone] = False
        columns[name] = _filled(columns[name], gone)
    return replace(dataset, columns=columns, present=present)


def assign_modalities(sites: int, shares: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The modalities of each site, in the order of ``shares``.

    shares: modalities joined by "+" -> share of the sites (sum 1), or whole numbers of sites:
    {"image": 2, "text": 2, "image+text": 4}. Shares are rounded by largest remainder.
    """
    names = {key: tuple(sorted(part.strip() for part in key.split("+"))) for key in shares}
    total = sum(shares.values())
    if not shares or min(shares.values()) < 0 or not all(all(parts) for parts in names.values()):
        raise ConfigError(f"modalities: write for instance image+text: 1.0, not {dict(shares)}")
    if total != sites and abs(total - 1) > 1e-6:
        raise ConfigError(
            f"modalities: {dict(shares)} add up to {total:g}; write shares that add up to 1, or "
            f"numbers of sites that add up to {sites}"
        )
    exact = np.array([share / total * sites for share in shares.values()])
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: sites - counts.sum()]] += 1
    return [names[key] for key, count in zip(shares, counts, strict=True) for _ in range(count)]


def _filled(column: Column, at: Tensor) -> Column:
    if isinstance(column, Tensor):
        return column.index_fill(0, at, 0)
    gone = set(at.tolist())
    return tuple("" if row in gone else text for row, text in enumerate(column))


def _check_known(shares: Mapping[str, float], datasets: Sequence[Dataset], where: str) -> None:
    known = sorted({name for data in datasets for name in data.columns})
    for name in shares:
        if name not in known:
            raise ConfigError(f"{where}.{name}: no site has it; write one of {', '.join(known)}")


def _without_at_sites(
    datasets: Sequence[Dataset], shares: Mapping[str, float], rng: Rng
) -> list[Dataset]:
    left = list(datasets)
    for name in sorted(shares):
        having = [site for site, data in enumerate(left) if name in data.columns]
        free = [site for site in having if len(left[site].columns) > 1]
        wanted = round(shares[name] * len(having))
        if wanted > len(free):
            raise DataError(
                f"missing.sites.{name}: {wanted} sites should lack it, but only {len(free)} have "
                f"another modality left; lower the share {shares[name]:g}"
            )
        for site in rng.permutation(free)[:wanted]:
            left[int(site)] = without(left[int(site)], name)
    return left
