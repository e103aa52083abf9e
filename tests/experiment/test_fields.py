from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from motet.core import Kind
from motet.experiment.fields import Row, kind_of, rows_of, shown


class Inner(BaseModel):
    """A group.

    With more about it.
    """

    lr: float = Field(0.1, gt=0, le=1, description="rate")
    name: Literal["a", "b"] = "a"


class Outer(BaseModel):
    n: int = Field(ge=1, description="number")
    inner: Inner = Inner(lr=0.5)
    off: bool = False
    some: list[int] = Field(default_factory=lambda: [1, 2])
    maybe: Annotated[float | None, Field(lt=3)] = None


def test_nested_groups_come_out_flat_with_their_owners_defaults() -> None:
    assert rows_of(Outer) == [
        Row("n", "int", "", ">= 1", "number"),
        Row("inner.lr", "float", "0.5", "> 0, <= 1", "rate"),
        Row("inner.name", "one of a, b", "a", "", "A group"),
        Row("off", "bool", "false", "", ""),
        Row("some", "list of int", "[1, 2]", "", ""),
        Row("maybe", "float or null", "null", "< 3", ""),
    ]


def test_a_docstring_tells_what_parameters_mean() -> None:
    doc = """Does something with n: not this one.

    n: how many, at
    least 1. off, some: both
    of them.

    maybe: perhaps.
    """
    about = {row.name: row.about for row in rows_of(Outer, doc)}
    assert about["n"] == "number"
    assert about["off"] == about["some"] == "both of them"
    assert about["maybe"] == "perhaps"
    assert about["inner.lr"] == "rate"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "int"),
        (float | None, "float or null"),
        (None | int, "int or null"),
        (Literal[1, "x"], "one of 1, x"),
        (tuple[str, ...], "list of str"),
        (str | tuple[str, ...], "str or list of str"),
        (dict[Kind, int], "mapping of Kind to int"),
        (Annotated[int, "about"], "int"),
        (list[Annotated[int, "about"]], "list of int"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert kind_of(annotation) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (0.001, "0.001"),
        (("a", "b"), "[a, b]"),
        ({"a": None}, "{a: null}"),
        (Inner(), "{lr: 0.1, name: a}"),
    ],
)
def test_defaults_as_a_recipe_writes_them(value: object, words: str) -> None:
    assert shown(value) == words
