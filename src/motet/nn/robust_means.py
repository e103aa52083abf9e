"""Robust rules that weigh or shorten whole updates [n, d]: none of them picks coordinates.

An update that is not finite counts as none at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from motet.core.errors import ConfigError


def geometric_median(
    updates: Tensor,
    weights: Tensor | None = None,
    *,
    iterations: int = 100,
    smoothing: float = 1e-6,
) -> Tensor:
    """The point [d] of least summed distance to all updates, by the smoothed Weiszfeld algorithm.

    It begins at the weighted mean. weights: not negative [n], all 1 by default. Pillutla, Kakade,
    Harchaoui, "Robust Aggregation for Federated Learning" (RFA), IEEE TSP 2022, which takes 3 or 4
    iterations. Raises ConfigError when no finite update has a weight.
    """
    wide, fine = _finite(updates)
    share = fine.double() if weights is None else weights.double() * fine
    if not float(share.sum()) > 0 or float(share.min()) < 0:
        raise ConfigError("a geometric median needs a finite update of positive weight")
    point = (share / share.sum()) @ wide
    for _ in range(iterations):
        pull = share / (wide - point).norm(dim=1).clamp(min=smoothing)
        point = (pull / pull.sum()) @ wide
    return point.to(updates.dtype)


def norm_bounded(updates: Tensor, bound: float) -> Tensor:
    """Updates [n, d], each shortened to an L2 norm of at most ``bound``: [n, d].

    Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019.
    """
    if not bound > 0:
        raise ConfigError(f"updates cannot be shortened to a norm of {bound}; write one above 0")
    wide, _ = _finite(updates)
    shares = (bound / wide.norm(dim=1, keepdim=True)).clamp(max=1)
    return (wide * shares).to(updates.dtype)


def norm_bound_mean(
    updates: Tensor, bound: float, *, std: float = 0.0, rng: torch.Generator | None = None
) -> Tensor:
    """The mean [d] of updates that are shortened to ``bound``, with N(0, std^2) noise on it."""
    if not len(updates):
        raise ConfigError("a mean needs at least 1 update, and there is none")
    found = norm_bounded(updates, bound).mean(dim=0)
    if std:
        found = found + std * torch.randn(found.shape, generator=rng, dtype=found.dtype)
    return found


def finite_norms(updates: Tensor) -> Tensor:
    """L2 norms of the updates [n, d] that are finite: float64 [m]."""
    wide, fine = _finite(updates)
    return wide.norm(dim=1)[fine]


def first_bound(norms: Tensor, quantile: float) -> float:
    """The bound to begin with: this quantile of the norms [m], the lower of two neighbours.

    Raises ConfigError when no norm is above 0.
    """
    if not len(norms) or not float(norms.max()) > 0:
        raise ConfigError("no site's update is finite and above 0, so that there is no bound")
    # Of norms that are 0, such as free riders', the least one above has to do.
    found = float(norms.double().quantile(quantile, interpolation="lower"))
    return found or float(norms[norms > 0].min())


def next_bound(bound: float, norms: Tensor, quantile: float, rate: float = 0.2) -> float:
    """The bound moved towards that quantile of norms [m]: bound * exp(-rate * (share - quantile)).

    share: of the norms, those that are at most the bound. It is all that a site tells by its
    norm, so that none moves the bound further than any other. Andrew, Thakkar, McMahan, Ramaswamy,
    "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021.
    """
    if not len(norms):
        return bound
    share = float((norms <= bound).double().mean())
    return bound * math.exp(-rate * (share - quantile))


def trust_scores(updates: Tensor, root: Tensor) -> Tensor:
    """max(0, cosine) of every update [n, d] with the hub's own one [d]: float64 [n]."""
    wide, _ = _finite(updates)
    own = root.double()
    norms = wide.norm(dim=1) * own.norm()
    return ((wide @ own) / norms.clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)


def fltrust(updates: Tensor, root: Tensor) -> Tensor:
    """The mean [d] of updates of the root's length, weighted by their trust scores.

    root: the update [d] that the hub makes of trusted rows of its own. 0 when nobody is trusted.
    Cao, Fang, Liu, Gong, NDSS 2021. Raises ConfigError for a root that does not fit.
    """
    if root.shape != updates.shape[1:] or not bool(root.isfinite().all()):
        raise ConfigError(
            f"the hub's own update must be finite and as long as the sites' ({updates.shape[1]}), "
            f"not {tuple(root.shape)}"
        )
    wide, _ = _finite(updates)
    scores = trust_scores(updates, root)
    total = float(scores.sum())
    if not total > 0:
        return torch.zeros_like(updates[0])
    # Updates of length 0 have a score of 0.
    lengths = wide.norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    found = (scores * root.double().norm() / lengths / total) @ wide
    return found.to(updates.dtype)


def foolsgold_weights(history: Tensor) -> Tensor:
    """How far each site stands alone among the sums of past updates [n, d]: float64 [n], 0 to 1.

    Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020.
    """
    wide, fine = _finite(history)
    lengths = wide.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    similar = ((wide / lengths) @ (wide / lengths).T).clamp(-1, 1)
    similar.fill_diagonal_(0)
    most = similar.max(dim=1).values
    # Who is less like others than its double is pardoned by that ratio.
    ratio = most.unsqueeze(1) / most.unsqueeze(0).where(most.unsqueeze(0) > 0, 1.0)
    similar = torch.where(most.unsqueeze(0) > most.unsqueeze(1), similar * ratio, similar)
    alone = (1 - similar.max(dim=1).values).clamp(0, 1) * fine
    # What the last bits of a cosine say must not be blown up to a whole weight.
    alone = alone.where(alone > 1e-9, 0.0)
    largest = float(alone.max())
    if largest == 0:
        return alone
    alone = alone / largest
    alone = torch.where(alone == 1, 0.99, alone)
    return ((alone / (1 - alone)).log() + 0.5).clamp(0, 1) * fine


def foolsgold(updates: Tensor, history: Tensor) -> Tensor:
    """The mean [d] of updates [n, d] by ``foolsgold_weights`` of ``history`` [n, any].

    When all are doubles of each other, there is nobody to prefer, and it is their plain mean.
    Raises ConfigError when no update is finite.
    """
    wide, fine = _finite(updates)
    if not bool(fine.any()):
        raise ConfigError("FoolsGold needs at least 1 finite update, and there is none")
    weights = foolsgold_weights(history) * fine
    if not float(weights.sum()) > 0:
        weights = fine.double()
    return ((weights / weights.sum()) @ wide).to(updates.dtype)


def _finite(updates: Tensor) -> tuple[Tensor, Tensor]:
    """Updates in float64 with 0 in place of those that are not finite, and which are: bool [n]."""
    wide = updates.double()
    fine = wide.isfinite().all(dim=1)
    return wide.where(fine.unsqueeze(1), 0.0), fine
