"""Which claims there are."""

from __future__ import annotations

from importlib import import_module

from motet.claims.base import Claim
from motet.core.errors import ConfigError

# name -> module whose CLAIM it is, or "module:NAME".
CLAIMS = {
    "creamfl": "motet.claims.creamfl",
    "local-only": "motet.claims.exchange:LOCAL_ONLY",
    "central": "motet.claims.exchange:CENTRAL",
    "fedavg": "motet.claims.drift:FEDAVG",
    "fedsgd": "motet.claims.drift:FEDSGD",
    "fedbuff": "motet.claims.fedbuff",
    "fedprox": "motet.claims.drift:FEDPROX",
    "scaffold": "motet.claims.drift:SCAFFOLD",
    "fednova": "motet.claims.drift:FEDNOVA",
    "feddyn": "motet.claims.drift:FEDDYN",
    "fedspeed": "motet.claims.drift:FEDSPEED",
    "fedavgm": "motet.claims.drift:FEDAVGM",
    "fedadagrad": "motet.claims.drift:FEDADAGRAD",
    "fedadam": "motet.claims.drift:FEDADAM",
    "fedyogi": "motet.claims.drift:FEDYOGI",
    "moon": "motet.claims.exchange:MOON",
    "fedwon": "motet.claims.fedwon",
    "fot": "motet.claims.fot",
    "fedpeft": "motet.claims.fedpeft",
    "frl": "motet.claims.frl",
    "fedlgd": "motet.claims.fedlgd",
    "sfprompt": "motet.claims.sfprompt",
    "fedbn": "motet.claims.personal:FEDBN",
    "fedper": "motet.claims.personal:FEDPER",
    "fedrep": "motet.claims.personal:FEDREP",
    "ditto": "motet.claims.personal:DITTO",
    "pfedme": "motet.claims.personal:PFEDME",
    "per-fedavg": "motet.claims.personal:PER_FEDAVG",
    "fedcac": "motet.claims.fedcac",
    "fedpub": "motet.claims.fedpub",
    "fedproto": "motet.claims.exchange:FEDPROTO",
    "fedmd": "motet.claims.exchange:FEDMD",
    "knfu": "motet.claims.knfu",
    "bristle": "motet.claims.bristle",
    "gifd": "motet.claims.gifd",
    "privacy": "motet.claims.privacy",
    "rffl": "motet.claims.rffl",
}


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
