import pytest
import torch
from torch import Tensor

from motet.core.errors import DataError
from motet.models.columns import pictures_of, texts_of


def test_the_right_columns_pass() -> None:
    pictures = torch.zeros(2, 3, 8, 9, dtype=torch.uint8)
    assert pictures_of(pictures) is pictures
    assert texts_of(("a", "b")) == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (torch.zeros(2, 3, 8, 8), r"float32 of shape \[2, 3, 8, 8\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"uint8 of shape \[2, 8, 8, 3\]"),
        (torch.zeros(2, 3, 8, dtype=torch.uint8), r"uint8 of shape \[2, 3, 8\]"),
    ],
)
def test_wrong_pictures_say_what_they_are(wrong: Tensor, found: str) -> None:
    with pytest.raises(DataError, match=rf"uint8 of shape \[n, 3, H, W\], not {found}"):
        pictures_of(wrong)


def test_columns_of_the_other_modality_are_refused() -> None:
    with pytest.raises(DataError, match="picture encoder got texts"):
        pictures_of(("a",))
    with pytest.raises(DataError, match="text encoder got a tensor"):
        texts_of(torch.zeros(1))
