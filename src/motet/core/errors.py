"""Errors that a user can act on: each says what is wrong, where, and what to write instead."""

from __future__ import annotations


class MotetError(Exception):
    """Base of all errors that are told to the user in one sentence, without a traceback."""


class ConfigError(MotetError):
    """A recipe, an option or a command line that cannot work as written."""


class DataError(MotetError):
    """Data that are missing, damaged or unfit for what the recipe asks of them."""


class WireError(MotetError):
    """A message that cannot be encoded, or bytes that are not a message of ours."""


class SiteError(MotetError):
    """Something went wrong at a site; names the site, the round and the operation."""


class StoreError(MotetError):
    """A run folder that cannot be written, or a checkpoint that cannot be read."""


class BudgetError(MotetError):
    """The run's privacy budget does not cover its next release."""
