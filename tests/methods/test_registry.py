from __future__ import annotations

import pytest

from motet.methods.registry import METHODS, about_method, method_class


@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_of_a_method_is_what_it_says_of_itself(name: str) -> None:
    assert about_method(name) == method_class(name).about()
