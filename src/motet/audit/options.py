"""What an audit is to do, and the ledger in which it notes what came out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from motet.audit.outcome import NONE, Cell, Gap, Shot
from motet.audit.upload import DefenceName
from motet.core.errors import ConfigError

AttackName: TypeAlias = Literal[
    "analytic",
    "dlg",
    "idlg",
    "inverting-gradients",
    "latent",
    "gifd",
    "decoder",
    "retrieval",
    "membership",
]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
# Defence -> its strength when none is given: strong ones, since weak ones are known to fail.
STRENGTHS: dict[DefenceName, float] = {
    "noise": 1.0,
    "clipping": 1.0,
    "sparsification": 99.0,
    "soteria": 80.0,
}


class DefenceChoice(BaseModel):
    """A defence and its strength."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DefenceName
    amount: float = Field(ge=0, description="noise: times the length; else bound or percentile")

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        return f"{self.name}:{self.amount:g}"


class AuditOptions(BaseModel):
    """How an audit goes; nothing here changes what the recipe trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str | None = Field(None, description="the site; null for one of each population")
    attacks: tuple[AttackName, ...] = Field((), description="these alone; none for all that apply")
    defences: tuple[DefenceChoice, ...] = Field(
        tuple(
            DefenceChoice(name=name, amount=STRENGTHS[name])
            for name in ("noise", "clipping", "sparsification")
        ),
        description="what is tried on top of the recipe's own protection",
    )
    pictures: int = Field(2, ge=1, le=64, description="pictures that are sought, per seed")
    rows: int = Field(1, ge=1, le=64, description="pictures behind one upload that is inverted")
    budget: int = Field(300, ge=1, description="gradients that an inversion may take")
    rounds: int = Field(3, ge=1, description="rounds in which the audited site is watched")
    seeds: tuple[int, ...] = Field((), description="seeds of the runs; none for the recipe's own")

    @field_validator("defences", mode="before")
    @classmethod
    def _parse(cls, values: object) -> object:
        if isinstance(values, list | tuple):
            return tuple(_choice(item) if isinstance(item, str) else item for item in values)
        return values

    def wants(self, attack: AttackName) -> bool:
        """Whether this attack is to be tried."""
        return not self.attacks or attack in self.attacks


def _choice(text: str) -> DefenceChoice:
    """A defence from "noise" or "noise:0.5"."""
    name, colon, amount = text.partition(":")
    for known in STRENGTHS:
        if name == known:
            try:
                return DefenceChoice(
                    name=known, amount=float(amount) if colon else STRENGTHS[known]
                )
            except ValueError:
                raise ConfigError(
                    f"--defence {text!r}: {amount!r} is no strength; write for instance "
                    f"{name}:{STRENGTHS[known]:g}"
                ) from None
    raise ConfigError(
        f"--defence {text!r}: there is no such defence; write one of {', '.join(STRENGTHS)}, "
        "with a strength after a colon where you want another"
    )


@dataclass
class Ledger:
    """Collects cells, pictures and gaps of one seed."""

    seed: int
    cells: dict[tuple[str, str, str, str, bool], Cell] = field(default_factory=dict)
    shots: list[Shot] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def add(
        self,
        attack: str,
        on: str,
        figure: str,
        values: Sequence[float],
        chance: Sequence[float],
        *,
        defence: str = NONE,
        control: bool = False,
        interval: tuple[float, float] | None = None,
    ) -> None:
        """Adds values of one figure to their cell."""
        key = (attack, on, figure, defence, control)
        old = self.cells.get(key, Cell(attack, on, figure, defence, (), (), control))
        self.cells[key] = Cell(
            attack,
            on,
            figure,
            defence,
            (*old.values, *((self.seed, float(value)) for value in values)),
            (*old.chance, *((self.seed, float(value)) for value in chance)),
            control,
            (*old.intervals, *([interval] if interval else [])),
        )

    def miss(self, what: str, why: str) -> None:
        """Notes something that was not tried; once, however often it did not work."""
        gap = Gap(what, why)
        if gap not in self.gaps:
            self.gaps.append(gap)

    def note(self, text: str) -> None:
        """Notes what was seen."""
        if text not in self.seen:
            self.seen.append(text)

    def show(
        self, attack: str, on: str, defence: str, truth: Tensor, made: Tensor, psnr: float
    ) -> None:
        """Keeps a picture [c, h, w] in 0..1 beside what was made of it."""
        self.shots.append(Shot(attack, on, defence, picture_url(truth), picture_url(made), psnr))


def picture_url(picture: Tensor) -> str:
    """A picture [1 or 3, h, w] in 0..1 as a PNG inside a URL."""
    from PIL import Image

    pixels = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0] if len(pixels) == 1 else pixels[:3].permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(array.contiguous().numpy()).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
