"""What stands between a payload and its frame, by declared kind: codecs, noise, filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from motet.core.kinds import Kind
from motet.core.tree import Tree


class Middleware(Protocol):
    """Changes a payload before it is framed, and changes it back after it was unframed."""

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        """The payload as it travels; must not change ``tree`` in place."""

    def unpack(self, tree: Tree) -> Tree:
        """The payload as the other side reads it."""


def pack_all(chain: Sequence[Middleware], tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
    """Applies the chain in order."""
    for middleware in chain:
        tree = middleware.pack(tree, kinds)
    return tree


def unpack_all(chain: Sequence[Middleware], tree: Tree) -> Tree:
    """Undoes the chain in reverse order."""
    for middleware in reversed(chain):
        tree = middleware.unpack(tree)
    return tree
