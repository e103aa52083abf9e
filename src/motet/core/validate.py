"""What a reply must look like before anything is made of it, at its site and again at the hub."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import SiteError, WireError
from motet.core.kinds import Kind
from motet.core.messages import Traits
from motet.core.method import Operation
from motet.core.tree import Tree, leaves
from motet.core.wire import digest

MAX_LOOSE_NUMBERS = 256
# The number of rows behind a reply, by which means are weighed.
SAMPLES = "samples"
Path: TypeAlias = tuple[str, ...]
Leaves: TypeAlias = Sequence[tuple[Path, Any]]
Signature: TypeAlias = tuple[tuple[Path, str, tuple[int, ...]], ...]


def check_declared(value: Any, operation: Operation, op: str, site: str) -> Leaves:
    """Only declared keys leave: tensors and texts under them, beside them single numbers.

    Returns all leaves. Raises SiteError naming the key.
    """
    if not isinstance(value, dict):
        raise SiteError(f"{op} must return a dict, not {type(value).__name__}")
    loose = 0
    found = leaves(value)
    for path, leaf in found:
        if path[0] in operation.sends:
            continue
        loose += 1
        if isinstance(leaf, Tensor | str) or loose > MAX_LOOSE_NUMBERS:
            raise SiteError(
                f"{op} at {site} returns {'.'.join(path)}, which its @at_site(sends=...) "
                "does not declare; declare the key with its kind"
            )
    return found


def row_order(public: Dataset | None) -> str:
    """A hash of the public rows' ids in their order; "" without any."""
    return "" if public is None else digest({"rows": public.rows})


def refused(
    values: Mapping[str, Tree],
    operation: Operation,
    op: str,
    received: Mapping[str, Tree],
    traits: Mapping[str, Traits],
    checks: Mapping[Kind, Callable[[Any], None]],
    sure: Collection[str] = (),
) -> dict[str, str]:
    """Site -> why its reply must not be used; only the sites whose reply is at fault.

    A reply has all declared keys, the optional ones where they are a modality that its site holds,
    and no further tensors or texts; its numbers are finite; it claims no more rows than the site
    announced. What the hub sent under the same key says which names, shapes and dtypes are right;
    without that, what more than half of the sites sent. sure: sites that were found beyond doubt
    before; they count as having sent the hub's own forms.
    """
    found: dict[str, str] = {}
    known = Known()
    for site, value in values.items():
        if site in sure:
            continue
        told, _ = alone(site, value, operation, op, received[site], known, traits, checks)
        if told:
            found[site] = told
    for key in _compared(operation):
        sent = {site: v[key] for site, v in values.items() if site not in found and key in v}
        sent = {site: value for site, value in sent.items() if site not in sure}
        if not sent:
            continue
        sent |= {site: received[site][key] for site in sure if key in received[site]}
        odd = _odd_ones(key, sent)
        # What the hub itself sent is right, whatever most others make of it.
        found |= {
            site: told
            for site, told in odd.items()
            if site not in sure and not _same(signature(sent[site]), received[site].get(key), known)
        }
    return found


class Known:
    """The tensors of what sites were sent, taken apart once for all that were sent the same."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[Path, Tensor]] = {}
        self._forms: dict[int, Signature] = {}

    def parts(self, sent: Tree) -> dict[Path, Tensor]:
        """Path -> tensor of something that stays as it is for as long as this object is used."""
        if id(sent) not in self._parts:
            tensors = {path: leaf for path, leaf in leaves(sent) if isinstance(leaf, Tensor)}
            self._parts[id(sent)] = tensors
        return self._parts[id(sent)]

    def form(self, sent: Any) -> Signature:
        """Its signature, likewise."""
        if id(sent) not in self._forms:
            self._forms[id(sent)] = signature(sent)
        return self._forms[id(sent)]


def alone(
    site: str,
    value: Tree,
    operation: Operation,
    op: str,
    received: Tree,
    known: Known,
    traits: Mapping[str, Traits],
    checks: Mapping[Kind, Callable[[Any], None]],
) -> tuple[str, Leaves]:
    """Why a reply must not be used, whatever others sent ("" for one that may be); its leaves."""
    try:
        parts = check_declared(value, operation, op, site)
        _check_alone(value, parts, operation, received, known, traits.get(site), checks)
    except (SiteError, WireError) as error:
        return str(error), ()
    return "", parts


def beyond_doubt(
    value: Tree, parts: Leaves, operation: Operation, received: Tree, known: Known
) -> bool:
    """Whether all that is compared among sites has the form of what the hub sent.

    parts: all leaves of the value.
    """
    return all(
        _same(
            _signature([(path[1:], leaf) for path, leaf in parts if path[0] == key]),
            received.get(key),
            known,
        )
        for key in _compared(operation)
        if key in value
    )


def _compared(operation: Operation) -> list[str]:
    # Every site has metrics of its own.
    return [
        key
        for key, kind in operation.sends.items()
        if key not in operation.varies and kind is not Kind.METRIC
    ]


def _check_alone(
    value: Tree,
    parts: Leaves,
    operation: Operation,
    received: Tree,
    known: Known,
    traits: Traits | None,
    checks: Mapping[Kind, Callable[[Any], None]],
) -> None:
    held = () if traits is None else traits.modalities
    missing = [
        key
        for key in operation.sends
        if key not in value and (key not in operation.optional or key in held)
    ]
    if missing:
        raise WireError(
            f"the reply lacks {missing[0]!r}; a key that may be absent is optional: "
            "@at_site(optional=...)"
        )
    for path, leaf in parts:
        if isinstance(leaf, Tensor | float):
            _check_finite(leaf, path)
    rows = value.get(SAMPLES, 0)
    if isinstance(rows, bool) or not isinstance(rows, int | float) or rows < 0:
        raise WireError(f"{SAMPLES} is {rows!r}, and should be a number of rows")
    if traits is not None and rows > traits.rows:
        raise WireError(f"{SAMPLES} claims {rows:,} rows, and the site announced {traits.rows:,}")
    for key, kind in operation.sends.items():
        if key not in value:
            continue
        if kind in checks:
            checks[kind](value[key])
        if kind is Kind.METRIC:
            _check_metrics(value[key], key)
        elif kind is Kind.WEIGHTS and isinstance(received.get(key), dict):
            _check_names(key, parts, known.parts(received[key]))


def _check_finite(leaf: Any, path: Path) -> None:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        # One pass without a mask of the tensor's size: a sum is finite unless a part is not, or
        # it overflows, which only then is worth a second look.
        total = leaf.sum(dtype=torch.float64 if leaf.dtype == torch.float64 else torch.float32)
        if not math.isfinite(total.item()) and not bool(torch.isfinite(leaf).all()):
            raise WireError(f"{'.'.join(path)} has values that are infinite or NaN")
    elif isinstance(leaf, float) and not math.isfinite(leaf):
        raise WireError(f"{'.'.join(path)} is {leaf}")


def _check_metrics(metrics: Any, key: str) -> None:
    fine = isinstance(metrics, dict) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(item, int | float) and not isinstance(item, bool) for item in pair)
        and pair[1] >= 0
        for pair in metrics.values()
    )
    if not fine:
        raise WireError(f"{key} should hold [value, number of rows] for every metric")


def _check_names(key: str, parts: Leaves, known: Mapping[Path, Tensor]) -> None:
    """Weights that come back are some of those that were sent, in shape and dtype."""
    for path, leaf in parts:
        if path[0] != key:
            continue
        wanted = known.get(path[1:])
        if wanted is None:
            raise WireError(f"{'.'.join(path)} was not asked for")
        if not isinstance(leaf, Tensor) or leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            raise WireError(f"{'.'.join(path)} is {_told(leaf)}, and should be {_told(wanted)}")


def _same(form: Signature, sent: Any, known: Known) -> bool:
    """Whether these are just the names, shapes and dtypes of what was sent."""
    return sent is not None and form == known.form(sent)


def signature(value: Any) -> Signature:
    """Names, dtypes and shapes of all leaves, whatever their order."""
    return _signature(leaves(value))


def _signature(parts: Leaves) -> Signature:
    return _in_order(tuple([(path, *_form(leaf)) for path, leaf in parts]))


# Most sites send the same form.
@lru_cache(maxsize=256)
def _in_order(forms: tuple[tuple[Path, torch.dtype | type, torch.Size], ...]) -> Signature:
    named = (
        (path, str(kind) if isinstance(kind, torch.dtype) else kind.__name__, tuple(shape))
        for path, kind, shape in forms
    )
    return tuple(sorted(named))


def _form(leaf: Any) -> tuple[torch.dtype | type, torch.Size]:
    return (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else (type(leaf), torch.Size())


def _told(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return f"a {str(leaf.dtype).removeprefix('torch.')} tensor of shape {tuple(leaf.shape)}"
    return f"a {type(leaf).__name__}"


def _odd_ones(key: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Those whose value under this key has another form than that of more than half.

    Without such a majority nobody can tell who is right, and all are odd.
    """
    forms = {site: signature(value) for site, value in values.items()}
    if len(set(forms.values())) < 2:
        return {}
    common, count = Counter(forms.values()).most_common(1)[0]
    if 2 * count <= len(forms):
        told = f"sites sent {key} in {len(set(forms.values()))} forms, and no form has a majority"
        return dict.fromkeys(forms, told)
    return {
        site: f"{key} has other parts, shapes or types than the {count} other sites' "
        f"({_difference(form, common)})"
        for site, form in forms.items()
        if form != common
    }


def _difference(form: Signature, common: Signature) -> str:
    """The first part in which two forms differ."""
    own, others = set(form) - set(common), set(common) - set(form)
    path, dtype, shape = min(own or others)
    name = ".".join(path) or "it"
    verb = "is" if own else "lacks"
    return f"{name} {verb} {dtype.removeprefix('torch.')} {shape}"


def unfit_reply(site: str, reason: str) -> str:
    """Why a site's reply is not used, for the events."""
    return f"site {site}: its reply is refused: {reason}"
