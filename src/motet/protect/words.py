"""What a recipe's protection does, in sentences that a data officer can read."""

from __future__ import annotations

from motet.protect.compress import CompressSpec
from motet.protect.privacy import describe as describe_privacy
from motet.protect.robust import RobustSpec
from motet.protect.secure_sum import SecureSumSpec
from motet.protect.spec import Protect


def described(protect: Protect, sites: int) -> list[tuple[str, str]]:
    """(what, how) of every part that is on, in the order in which a reply meets them."""
    found: list[tuple[str, str]] = []
    if protect.privacy is not None:
        found.append(("differential privacy", describe_privacy(protect.privacy, sites)))
    if protect.secure_sum is not None:
        found.append(("secure sum", _secure_sum(protect.secure_sum, sites)))
    if protect.compress:
        codecs = ", ".join(f"{kind} as {_codec(spec)}" for kind, spec in protect.compress.items())
        found.append(("fewer bytes", f"On their way {codecs}. This is no protection."))
    if protect.robust is not None:
        found.append(("dishonest sites", _robust(protect.robust)))
    return found


def nothing_hidden(protect: Protect) -> bool:
    """Whether whoever runs the hub sees every reply as it was made."""
    private = protect.privacy is not None and protect.privacy.mode != "central"
    return not private and protect.secure_sum is None


def _codec(spec: CompressSpec) -> str:
    share = getattr(spec, "share", None)
    return spec.name if share is None else f"{spec.name} (share {share:g})"


def _secure_sum(spec: SecureSumSpec, sites: int) -> str:
    kinds = ", ".join(spec.kinds)
    return (
        f"The hub sees of {kinds} nothing but the sum over the sites that answered, in fixed point "
        f"of {spec.bits} bits within ±{spec.clip:g}; {spec.threshold(sites)} of {sites} sites must "
        "stay. It does not protect the sum itself, nor against a hub that puts keys of its own in "
        "the sites' place."
    )


def _robust(spec: RobustSpec) -> str:
    kinds = ", ".join(spec.kinds)
    return (
        f"Where the method asks for a mean of {kinds}, the hub takes the rule {spec.name}, which "
        f"is set to bear a share of {spec.share:g} dishonest sites. All sites count alike."
    )
