"""Which claims there are."""

from __future__ import annotations

from importlib import import_module

from motet.claims.base import Claim
from motet.core.errors import ConfigError

# name -> module whose CLAIM it is, or "module:NAME".
CLAIMS = {"creamfl": "motet.claims.creamfl"}


def list_claims() -> list[str]:
    """Names of all claims, sorted."""
    return sorted(CLAIMS)


def claim_named(name: str) -> Claim:
    """The claim of this name; raises ConfigError that lists the names there are."""
    if name not in CLAIMS:
        raise ConfigError(f"there is no claim {name!r}; write one of {', '.join(list_claims())}")
    module, _, attribute = CLAIMS[name].partition(":")
    claim: Claim = getattr(import_module(module), attribute or "CLAIM")
    return claim
