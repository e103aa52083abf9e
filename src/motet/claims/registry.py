"""Which claims there are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from motet.claims.base import Claim


@dataclass(frozen=True)
class ClaimInfo:
    """One claim as the list shows it; ``target`` is its module here, or "module:NAME"."""

    target: str
    title: str


CLAIMS = {
    "creamfl": ClaimInfo("creamfl", "CreamFL's server gains from private data that it never sees"),
    "local-only": ClaimInfo("exchange:LOCAL_ONLY", "A site alone knows only its own classes"),
    "central": ClaimInfo("exchange:CENTRAL", "What pooling all rows would give"),
    "fedavg": ClaimInfo(
        "drift:FEDAVG",
        "Local steps are worth rounds, and label skew costs FedAvg accuracy",
    ),
    "fedsgd": ClaimInfo(
        "drift:FEDSGD",
        "FedSGD with all sites does not see how the rows are shared out",
    ),
    "fedbuff": ClaimInfo("fedbuff", "Where some sites are slow, FedBuff does not wait for them"),
    "fedprox": ClaimInfo(
        "drift:FEDPROX", "FedProx is level with FedAvg where all sites do equal work"
    ),
    "scaffold": ClaimInfo("drift:SCAFFOLD", "Control variates make up for label skew"),
    "fednova": ClaimInfo("drift:FEDNOVA", "Normalising makes up for unequal local work"),
    "feddyn": ClaimInfo("drift:FEDDYN", "Dual vectors make up for label skew, for FedAvg's bytes"),
    "fedspeed": ClaimInfo(
        "drift:FEDSPEED",
        "FedSpeed gains under label skew, and more local steps do not hurt it",
    ),
    "fedavgm": ClaimInfo(
        "drift:FEDAVGM", "Momentum at the hub smooths rounds of few, unlike sites"
    ),
    "fedadagrad": ClaimInfo(
        "drift:FEDADAGRAD", "FedAdagrad is level with FedAvg on dense pictures"
    ),
    "fedadam": ClaimInfo("drift:FEDADAM", "Adam at the hub beats plain averaging"),
    "fedyogi": ClaimInfo("drift:FEDYOGI", "Yogi at the hub beats plain averaging"),
    "moon": ClaimInfo(
        "exchange:MOON",
        "A contrast between models lifts the hub's model under label skew",
    ),
    "fedwon": ClaimInfo(
        "fedwon",
        "FedWon's one network without norms serves sites of different styles best",
    ),
    "fot": ClaimInfo("fot", "FOT forgets little, with no replay"),
    "fedpeft": ClaimInfo("fedpeft", "FedPEFT trains and sends a small part of a pre-trained model"),
    "frl": ClaimInfo(
        "frl", "FRL withstands a fifth of dishonest sites with half of FedAvg's upload"
    ),
    "fedlgd": ClaimInfo("fedlgd", "FedLGD's global rows hold what the sites' updates teach"),
    "sfprompt": ClaimInfo(
        "sfprompt",
        "SFPrompt tunes a split model with fewer bytes than plain split tuning",
    ),
    "fedbn": ClaimInfo(
        "personal:FEDBN", "FedBN beats FedAvg where sites draw in styles of their own"
    ),
    "fedper": ClaimInfo(
        "personal:FEDPER",
        "FedPer's own heads beat one model for all where labels are skewed",
    ),
    "fedrep": ClaimInfo(
        "personal:FEDREP",
        "FedRep's shared representation under heads of the sites' own",
    ),
    "ditto": ClaimInfo(
        "personal:DITTO",
        "Ditto's personal models beat the global one and local training",
    ),
    "pfedme": ClaimInfo(
        "personal:PFEDME",
        "pFedMe's personal models beat its global one, FedAvg and Per-FedAvg",
    ),
    "per-fedavg": ClaimInfo(
        "personal:PER_FEDAVG", "Per-FedAvg is a better start for one step than FedAvg"
    ),
    "fedcac": ClaimInfo("fedcac", "FedCAC's critical entries tell which sites are alike"),
    "fedpub": ClaimInfo(
        "fedpub",
        "FED-PUB beats one model for all and training alone on a graph of communities",
    ),
    "fedproto": ClaimInfo(
        "exchange:FEDPROTO", "Class prototypes alone help sites whose models differ"
    ),
    "fedmd": ClaimInfo(
        "exchange:FEDMD",
        "Sites with models of their own learn from one another's class scores",
    ),
    "knfu": ClaimInfo(
        "knfu", "KnFu avoids the harm that a common teacher does, and keeps the gain"
    ),
    "bristle": ClaimInfo(
        "bristle", "Bristle is at once robust and tolerant of peers with few classes"
    ),
    "gifd": ClaimInfo(
        "gifd",
        "GIFD: searching a generator's features beats searching its latent code",
    ),
    "privacy": ClaimInfo(
        "privacy", "Privacy of whole sites at a budget of 8 leaves a usable model"
    ),
    "rffl": ClaimInfo(
        "rffl",
        "RFFL gives more to those who bring more, and shuts out those who bring nothing",
    ),
}


def list_claims() -> list[str]:
    """Names of all claims, sorted."""
    return sorted(CLAIMS)


def claim_title(name: str) -> str:
    """What this claim says, without importing it."""
    return CLAIMS[name].title


def claim_named(name: str) -> Claim:
    """The claim of this name; raises ConfigError that lists the names there are."""
    if name not in CLAIMS:
        raise ConfigError(f"there is no claim {name!r}; write one of {', '.join(list_claims())}")
    module, _, attribute = CLAIMS[name].target.partition(":")
    claim: Claim = getattr(import_module(f"{__package__}.{module}"), attribute or "CLAIM")
    return claim
