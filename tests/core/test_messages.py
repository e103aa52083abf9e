"""Bytes are counted by the kind that was declared."""

from __future__ import annotations

import torch

from motet.core import Kind
from motet.core.messages import bytes_by_kind


def test_tensor_bytes_go_to_their_kind() -> None:
    tree = {
        "image": {"codes": torch.zeros(4, dtype=torch.int8), "scale": torch.zeros(2)},
        "text": [torch.zeros(3, dtype=torch.float16)],
        "rows": torch.zeros(5, dtype=torch.int64),
        "samples": 12,
        "loose": torch.zeros(1),
    }
    kinds = {
        "image": Kind.REPRESENTATIONS,
        "text": Kind.REPRESENTATIONS,
        "rows": Kind.CONTROL,
        "absent": Kind.LOGITS,
    }
    assert bytes_by_kind(tree, kinds) == {"representations": 18, "control": 40, "other": 4}
