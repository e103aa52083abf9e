"""Registered claims: the experiment behind every method, its arms, what must come out."""

from motet.claims.base import Claim, Expectation, markdown, run_claim
from motet.claims.registry import claim_named, list_claims

__all__ = ["Claim", "Expectation", "claim_named", "list_claims", "markdown", "run_claim"]
