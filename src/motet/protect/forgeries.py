"""What attackers send: pure functions on the honest updates [n, d] or rows [n, d] they know.

Attackers that send the same need one vector [d], which all of them send.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.nn.bits import pack_order, unpack_order
from motet.nn.robust import elected, krum_scores, ranks_of, squared_distances, trimmed_mean

Perturbation: TypeAlias = Literal["sign", "std", "unit"]


def spread(honest: Tensor) -> Tensor:
    """The standard deviation [d] of updates [n, d]; 0 for a single one."""
    found: Tensor = honest.std(dim=0, correction=min(1, len(honest) - 1))
    return found


def alie_strength(sites: int, attackers: int) -> float:
    """How many standard deviations ALIE leaves the mean: z such that enough sites are beyond it.

    s = floor(sites / 2 + 1) - attackers honest sites have to side with the attackers to make a
    majority; z is the normal quantile of (sites - attackers - s) / (sites - attackers), and at
    least 0. Attackers that are a majority by themselves still want one honest site.
    """
    honest = sites - attackers
    if attackers < 1 or honest < 1:
        raise ConfigError(f"{attackers} attackers of {sites} sites leave no honest site to hide in")
    wanted = max(sites // 2 + 1 - attackers, 1)
    share = (honest - wanted) / honest
    return NormalDist().inv_cdf(share) if share > 0.5 else 0.0


def alie(honest: Tensor, strength: float) -> Tensor:
    """mean - strength * standard deviation of updates [n, d]: [d].

    Baruch, Baruch, Goldberg, "A Little Is Enough", NeurIPS 2019.
    """
    return honest.mean(dim=0) - strength * spread(honest)


def random_signs(own: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
    """Updates [n, d] with a random sign for every number, by one generator each: [n, d].

    Their lengths stay, so that no bound on the norm tells them from honest ones.
    """
    signs = [
        torch.randint(0, 2, row.shape, generator=rng) for row, rng in zip(own, rngs, strict=True)
    ]
    return own * (2 * torch.stack(signs) - 1)


def inner_product(honest: Tensor, eps: float) -> Tensor:
    """-eps times the mean of updates [n, d]: [d].

    f of n sites turn the mean around when eps is above (n - f) / f. Xie, Koyejo, Gupta, "Fall of
    Empires", UAI 2019.
    """
    return -eps * honest.mean(dim=0)


def perturbation(honest: Tensor, name: Perturbation) -> Tensor:
    """The direction [d] off updates [n, d]: minus the mean's sign, the spread, or the unit mean."""
    mean = honest.mean(dim=0)
    if name == "sign":
        return -mean.sign()
    if name == "std":
        return -spread(honest)
    size: Tensor = mean.norm()
    return -mean / size.clamp(min=torch.finfo(mean.dtype).tiny)


def min_max(honest: Tensor, name: Perturbation = "std") -> Tensor:
    """mean + g * perturbation, with the largest g that keeps it among updates [n, d]: [d].

    Its distance to the farthest update is at most that of the two farthest updates. Shejwalkar and
    Houmansadr, NDSS 2021; the bound on g is solved for, where the paper halves steps from 10 on.
    """
    wide = honest.double()
    mean, step = wide.mean(dim=0), perturbation(wide, name)
    widest = _between(wide).max()
    # |mean - u + g step|^2 = widest is quadratic in g for every u; the least root binds.
    off = mean - wide
    a, b = step.square().sum(), off @ step
    room = (widest - off.square().sum(dim=1)).clamp(min=0)
    if not float(a) > 0:
        return honest.mean(dim=0)
    root = ((b.square() + a * room).sqrt() - b) / a
    return (mean + root.min() * step).to(honest.dtype)


def min_sum(honest: Tensor, name: Perturbation = "std") -> Tensor:
    """mean + g * perturbation, with the largest g that keeps it near updates [n, d]: [d].

    Its summed squared distances to all are at most those of the update that is farthest from the
    others. Shejwalkar and Houmansadr, NDSS 2021; solved for as in ``min_max``.
    """
    wide = honest.double()
    mean, step = wide.mean(dim=0), perturbation(wide, name)
    most = _between(wide).sum(dim=1).max()
    room = (most - (mean - wide).square().sum()).clamp(min=0)
    length = step.square().sum()
    if not float(length) > 0:
        return honest.mean(dim=0)
    return (mean + (room / (len(wide) * length)).sqrt() * step).to(honest.dtype)


def _between(updates: Tensor) -> Tensor:
    """Squared distances between updates [n, d], 0 on the diagonal: [n, n]."""
    return squared_distances(updates).fill_diagonal_(0)


def tailored(honest: Tensor, attackers: int, trim: int | None = None) -> Tensor:
    """The update [d] by which so many attackers move a trimmed mean of ``honest`` [n, d] furthest.

    mean - lambda * standard deviation; lambda is searched from 5 in steps that halve down to
    1e-5, and grows while the trimmed mean moves further. trim: None for ``attackers``.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021.
    """
    mean = honest.mean(dim=0)
    deviation = spread(honest)
    most = (attackers + len(honest) - 1) // 2
    cut = min(attackers if trim is None else trim, most)

    def moved(strength: float) -> float:
        forged = (mean - strength * deviation).expand(attackers, -1)
        return float((trimmed_mean(torch.cat([forged, honest]), cut) - mean).norm())

    return mean - furthest(moved) * deviation


def tailored_krum(honest: Tensor, attackers: int) -> Tensor:
    """The update [d] furthest off with which multi-Krum still takes all of the attackers.

    mean - lambda * standard deviation of ``honest`` [n, d], with the same search as ``tailored``.
    """
    mean, deviation = honest.mean(dim=0), spread(honest)

    def moved(strength: float) -> float:
        forged = mean - strength * deviation
        return strength if _all_taken(honest, forged, attackers) else 0.0

    return mean - furthest(moved) * deviation


def furthest(moved: Callable[[float], float], start: float = 5.0, least: float = 1e-5) -> float:
    """The last strength at which ``moved`` was larger than ever before; 0 for none."""
    best, largest, strength, step = 0.0, 0.0, start, start / 2
    while step > least:
        distance = moved(strength)
        if distance > largest:
            best, largest = strength, distance
            strength += step
        else:
            strength -= step
        step /= 2
    return best


def _all_taken(honest: Tensor, forged: Tensor, attackers: int) -> bool:
    """Whether multi-Krum, which takes as many as are honest, takes every forged update."""
    count = len(honest) + attackers
    # Those who know few updates put up with fewer attackers than there are.
    bears = min(attackers, (count - 3) // 2)
    if bears < 0:
        return True
    scores = krum_scores(torch.cat([forged.expand(attackers, -1), honest]), bears)
    best = scores.argsort(stable=True)[: len(honest)]
    return int((best < attackers).sum()) == min(attackers, len(honest))


def directed_extremes(
    honest: Tensor, rngs: Sequence[torch.Generator], *, known: bool, stretch: float = 2.0
) -> Tensor:
    """Values just beyond the honest ones [n, d], against the honest direction: [attackers, d].

    Where the mean update is positive they are below the least one, else above the largest one;
    uniform up to ``stretch`` times it where all honest updates are known, and 3 to 4 standard
    deviations off the mean where they are not. Against trimmed mean and median. rngs: one per
    attacker. Fang, Cao, Jia, Gong, USENIX Security 2020.
    """
    mean, deviation = honest.mean(dim=0), spread(honest)
    down = mean > 0
    if known:
        low, high = honest.min(dim=0).values, honest.max(dim=0).values
        near = torch.where(down, low, high)
        # Away from 0 when that is the way to go, and towards it otherwise: always further out.
        far = torch.where((near > 0) == down, near / stretch, near * stretch)
    else:
        side = torch.where(down, -1.0, 1.0).to(mean.dtype)
        near, far = mean + 3 * side * deviation, mean + 4 * side * deviation
    drawn = torch.stack([torch.rand(mean.shape, generator=rng) for rng in rngs]).to(mean.dtype)
    return near + drawn * (far - near)


def directed_krum(honest: Tensor, attackers: int, least: float = 1e-5) -> Tensor:
    """-lambda * the sign of the mean of updates [n, d], with a large lambda that Krum takes: [d].

    lambda begins where Krum cannot take it, and is halved until Krum takes it or it is below
    ``least`` times its beginning. Fang, Cao, Jia, Gong, USENIX Security 2020, in updates.
    """
    direction = honest.mean(dim=0).sign()
    count = len(honest) + attackers
    bears = min(attackers, (count - 3) // 2)
    size = float(direction.norm())
    if not size > 0:
        return honest.mean(dim=0)
    widest = float(_between(honest).max().sqrt())
    strength = first = (float(honest.norm(dim=1).max()) + len(honest) * widest) / size
    while bears >= 0 and strength >= least * first:
        forged = (-strength * direction).expand(attackers, -1)
        if int(krum_scores(torch.cat([forged, honest]), bears).argmin()) < attackers:
            break
        strength /= 2
    return -strength * direction


def uniform_noise(like: Tensor, width: float, rngs: Sequence[torch.Generator]) -> Tensor:
    """Uniform draws from -width to width in place of every update [attackers, d].

    Free riders' random weights: Lin, Du, Liu, 2019.
    """
    drawn = torch.stack([torch.rand(like.shape[1:], generator=rng) for rng in rngs])
    return ((2 * drawn - 1) * width).to(like.dtype)


def permuted_rows(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Rows [n, ...] in an order that colluders share when their generators are alike."""
    return rows[torch.randperm(len(rows), generator=rng)]


def swapped_rows(rows: Tensor) -> Tensor:
    """Every row [n, ...] replaced by that of the others which is farthest from it."""
    if len(rows) < 2:
        return rows
    distance = _between(rows.flatten(1)).fill_diagonal_(-1)
    return rows[distance.argmax(dim=1)]


def random_rows(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Every row [n, ...] replaced by one of equal length in a random direction."""
    drawn = torch.randn(rows.shape, generator=rng).to(rows.dtype)
    axes = tuple(range(1, rows.dim()))
    lengths = torch.linalg.vector_norm(rows, dim=axes, keepdim=True)
    turned: Tensor = drawn / torch.linalg.vector_norm(drawn, dim=axes, keepdim=True) * lengths
    return turned


def turned_orders(ballots: Sequence[Any], back: bool = True) -> Any:
    """What these ballots elect together, the other way round, in every packed order of their tree.

    back: reversed; else rotated by half. A ballot that names some things alone gets one that names
    as many.
    """
    first = ballots[0]
    if not isinstance(first, dict):
        raise WireError("votes that are to be turned must be packed orders")
    if "bits" not in first:
        return {name: turned_orders([ballot[name] for ballot in ballots], back) for name in first}
    orders = [unpack_order(ballot) for ballot in ballots]
    size = int(first["of"])
    order = elected([ranks_of(order, size) for order in orders])
    turned = order.flip(0) if back else order.roll(size // 2)
    return pack_order(turned[size - len(orders[0]) :], size)


def normal_noise(own: Tensor, std: float | None, rngs: Sequence[torch.Generator]) -> Tensor:
    """A normal draw in place of every update [attackers, d]; std None for the update's size."""
    drawn = torch.stack([torch.randn(own.shape[1:], generator=rng) for rng in rngs])
    size = own.norm(dim=1, keepdim=True) / math.sqrt(max(own.shape[1], 1))
    return drawn * (size if std is None else std)
