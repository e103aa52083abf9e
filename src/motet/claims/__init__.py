"""Registered claims: the experiment behind every method, its arms, what must come out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.claims.base import Claim, Expectation, markdown, run_claim
    from motet.claims.registry import claim_named, list_claims

_MODULE_OF = {
    "Claim": "base",
    "Expectation": "base",
    "markdown": "base",
    "run_claim": "base",
    "claim_named": "registry",
    "list_claims": "registry",
}

__all__ = ["Claim", "Expectation", "claim_named", "list_claims", "markdown", "run_claim"]


def __getattr__(name: str) -> object:
    # The list of claims alone must not cost an import of torch: the command line shows it.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
