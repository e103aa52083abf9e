"""Whether contenders made the same steps: their weights after a round, and their last losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.works import Plan, Work, load_weights, loss_of

# Distance of the weights after one round, as a share of how far the round moved them. Rounding
# gives 1e-6 to 1e-3; a round with other rows, or in another order, gives 0.1 and more.
WEIGHTS = 0.01
# Difference of the losses at the end, as a share of the loss.
LOSS = 0.002
REFERENCE = "plain"


class DisagreementError(Exception):
    """Contenders did not do the same work, so that their times must not be compared."""


def check(work: Work, folder: Path, who: Sequence[str]) -> dict[str, dict[str, float]]:
    """For every contender how far it is from the plain loop; raises DisagreementError."""
    plan = Plan(folder)
    start = loss_of(work, plan, plan.weights)
    weights = {name: load_weights(folder / f"{name}-1.npz") for name in who}
    losses = {name: loss_of(work, plan, load_weights(folder / f"{name}-end.npz")) for name in who}
    reference = weights[REFERENCE]
    moved = sum(float((reference[k] - plan.weights[k]).square().sum()) for k in reference) ** 0.5
    if not moved or abs(losses[REFERENCE] - start) < 2 * LOSS * losses[REFERENCE]:
        raise DisagreementError(f"nothing was learnt: the loss went from {start:.4f} to {losses}")
    found = {}
    for name in who:
        apart = sum(float((weights[name][k] - reference[k]).square().sum()) for k in reference)
        share = apart**0.5 / moved
        gap = abs(losses[name] - losses[REFERENCE]) / losses[REFERENCE]
        found[name] = {"weights": share, "loss": losses[name]}
        if not share <= WEIGHTS:
            raise DisagreementError(
                f"after one round the weights of {name} are {share:.2%} of the round's step away "
                f"from those of the plain loop, and {WEIGHTS:.0%} is allowed"
            )
        if not gap <= LOSS:
            raise DisagreementError(
                f"{name} ends with a loss of {losses[name]:.4f} and the plain loop with "
                f"{losses[REFERENCE]:.4f}; a difference of {LOSS:.1%} is allowed"
            )
    return {**found, "start": {"loss": start}}
