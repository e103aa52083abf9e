"""A site's secret on its disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from motet.agent.secret import own_secret
from motet.core import ConfigError, StoreError


def number(folder: Path) -> float:
    return float(own_secret(folder).generator(0).normal(torch.zeros(())))


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    first = number(tmp_path / "a")
    path = tmp_path / "a/secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert [file.name for file in path.parent.iterdir()] == ["secret"]
    assert number(tmp_path / "a") == first
    assert number(tmp_path / "b") != first


def test_what_a_kill_left_behind_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".secret.part").write_bytes(b"half")
    number(tmp_path)
    assert len((tmp_path / "secret").read_bytes()) == 32


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    number(tmp_path)
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        own_secret(tmp_path)


def test_a_broken_one_is_refused(tmp_path: Path) -> None:
    number(tmp_path)
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(StoreError, match="5 bytes in place of 32"):
        own_secret(tmp_path)
