"""A chain is applied in order, and undone backwards."""

from __future__ import annotations

from collections.abc import Mapping

from motet.core import Kind, Tree
from motet.core.middleware import pack_all, unpack_all


class Suffix:
    def __init__(self, letter: str) -> None:
        self.letter = letter

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        return {key: value + self.letter if key in kinds else value for key, value in tree.items()}

    def unpack(self, tree: Tree) -> Tree:
        return {key: value.removesuffix(self.letter) for key, value in tree.items()}


def test_the_last_to_pack_is_the_first_to_unpack() -> None:
    chain = [Suffix("a"), Suffix("b")]
    tree = {"declared": "x", "other": "y"}
    packed = pack_all(chain, tree, {"declared": Kind.LOGITS})
    assert packed == {"declared": "xab", "other": "y"}
    assert unpack_all(chain, packed) == tree


def test_an_empty_chain_changes_nothing() -> None:
    assert unpack_all([], pack_all([], {"a": 1}, {})) == {"a": 1}
