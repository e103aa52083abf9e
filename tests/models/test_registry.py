import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

import motet.models
from motet.core.errors import ConfigError
from motet.core.rng import generator
from motet.models import (
    Encoder,
    ModelSpec,
    build_model,
    encoder_class,
    encoder_options,
    list_encoders,
    parse_model,
)
from motet.models import known as known_module
from motet.models import registry as registry_module

BOTH = {
    "image": {"name": "hog-mlp", "hidden": 16},
    "text": {"name": "hashed-mlp", "bins": 64},
    "width": 8,
}
NAMES = [info.name for info in list_encoders()]


class Ears(Encoder):
    """Sounds by their mean.

    More about them.
    """

    modality = "sound"

    def __init__(self, width: int = 8, gain: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(2, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two installed encoders of other packages, one of them broken, and one that is none."""
    values = {
        "ears": f"{__name__}:Ears",
        "gone": "no_such_module:Encoder",
        "odd": "collections:OrderedDict",
    }
    group = registry_module.ENTRY_POINTS
    found = EntryPoints(EntryPoint(name, value, group) for name, value in values.items())
    for module in (registry_module, known_module):
        monkeypatch.setattr(module, "entry_points", lambda group: found.select(group=group))
    yield
    encoder_class.cache_clear()
    encoder_options.cache_clear()


def weights(spec: ModelSpec, *modalities: str, seed: int = 0) -> dict[str, Tensor]:
    return build_model(spec, modalities or None, 3, generator(seed)).state_dict()


def test_public_names_are_there() -> None:
    assert motet.models.__all__ == sorted(motet.models.__all__)
    for name in motet.models.__all__:
        assert getattr(motet.models, name)


def test_building_a_list_or_a_spec_loads_no_pretrained_package() -> None:
    code = (
        "import sys\n"
        "from motet.models import list_encoders, parse_model\n"
        "list_encoders()\n"
        "parse_model({'image': 'efficientnet-lite0', 'text': 'minilm'})\n"
        "sys.exit('transformers' in sys.modules or 'tokenizers' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_of_the_list_is_true(name: str) -> None:
    info = next(info for info in list_encoders() if info.name == name)
    cls = encoder_class(name)
    assert issubclass(cls, Encoder)
    assert cls.modality == info.modality
    assert info.about
    assert info.source
    spec = parse_model({info.modality: name, "width": 16})
    model = build_model(spec, None, 0, generator(0))
    assert model.modalities == (info.modality,)
    assert model.width == 16


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_bounded_and_described(name: str) -> None:
    for option, field in encoder_options(name).model_fields.items():
        assert field.description, option
        known = ("Literal", "Ge(", "str")
        named = any(word in str(field.annotation) for word in known)
        assert field.annotation is bool or field.metadata or named
        assert not field.is_required()


def test_a_spec_fills_in_defaults_and_converts() -> None:
    spec = parse_model({"image": {"name": "hog-mlp", "hidden": "32"}, "text": "hashed-mlp"})
    assert spec.width == 64
    assert spec.encoders["image"].options() == {"hidden": 32, "dropout": 0.0}
    assert spec.encoders["text"].options()["bins"] == 1024
    assert list(spec.encoders) == ["image", "text"]


def test_a_spec_survives_its_own_dump() -> None:
    spec = parse_model(BOTH)
    for again in (
        parse_model(spec.model_dump()),
        ModelSpec.model_validate_json(spec.model_dump_json()),
    ):
        assert again == spec
        assert hash(again) == hash(spec)
    other = parse_model({**BOTH, "image": {"name": "hog-mlp", "hidden": 17}})
    assert other != spec
    assert hash(other) != hash(spec)


def test_a_spec_is_frozen() -> None:
    spec = parse_model(BOTH)
    with pytest.raises(ValidationError):
        spec.width = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        spec.encoders["image"].hidden = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"image": {"name": "hog-mlp", "hiden": 3}}, ["model.image", "hiden", "no such", "hidden"]),
        ({"image": {"name": "hog-mlp", "hidden": 0}}, ["model.image", "hidden", "equal to 1", "0"]),
        ({"text": {"name": "hashed-mlp", "dropout": 1.5}}, ["dropout", "0.95", "not 1.5"]),
        ({"text": {"name": "hashed-mlp", "bins": "many"}}, ["bins", "valid integer", "'many'"]),
        ({"image": {"name": "resnet-gn", "depth": 9}}, ["depth", "8, 14, 18 or 20", "not 9"]),
        ({"image": {"name": "resnet-gn", "channels": 12}}, ["channels", "multiple of 8"]),
        ({"image": "hogmlp"}, ["model.image", "'hogmlp'", "hog-mlp", "resnet-gn"]),
        ({"image": {"hidden": 3}}, ["model.image.name", "missing"]),
        ({"image": {"name": "hog-mlp", "width": 3}}, ["width", "no such option"]),
        ({"text": "hog-mlp"}, ["text", "'hog-mlp'", "reads image"]),
        ({"imgae": "hog-mlp"}, ["imgae", "'hog-mlp'", "reads image"]),
        ({"widht": 3, "text": "hashed-mlp"}, ["model.widht", "encoder's name", "not 3"]),
        ({"width": 1, "text": "hashed-mlp"}, ["model.width", "equal to 2", "not 1"]),
        ({}, ["model", "needs an encoder", "image: hog-mlp"]),
        ({"width": 8, "text": None}, ["needs an encoder"]),
        (3, ["model", "mapping", "not 3"]),
    ],
)
def test_bad_specs_say_what_is_wrong_in_one_line(value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model(value)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_holds_a_spec_names_the_place() -> None:
    class Recipe(BaseModel):
        server: ModelSpec

    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"server": {"image": {"name": "hog-mlp", "hiden": 3}}})
    (error,) = caught.value.errors()
    assert error["loc"] == ("server", "image")
    assert "hiden" in error["msg"]


@pytest.mark.usefixtures("rng_untouched")
def test_weights_come_from_the_generator_alone() -> None:
    spec = parse_model(BOTH)
    first = weights(spec)
    torch.rand(1, generator=generator(9))
    again = weights(spec)
    other = weights(spec, seed=1)
    assert all(value.equal(again[name]) for name, value in first.items())
    assert not first["encoders.image.layers.0.weight"].equal(
        other["encoders.image.layers.0.weight"]
    )
    assert not first["head.weight"].equal(other["head.weight"])


def test_two_models_of_one_generator_differ() -> None:
    spec, source = parse_model(BOTH), generator(0)
    first = build_model(spec, None, 0, source).state_dict()
    second = build_model(spec, None, 0, source).state_dict()
    name = "encoders.image.layers.0.weight"
    assert not first[name].equal(second[name])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_an_encoder_starts_alike_whatever_is_beside_it(modality: str) -> None:
    spec = parse_model(BOTH)
    alone, together = weights(spec, modality), weights(spec)
    assert {name for name in alone if name.startswith("encoders.")}
    assert all(value.equal(together[name]) for name, value in alone.items())


def test_encoders_of_one_model_do_not_start_alike() -> None:
    image = {"name": "hog-mlp", "hidden": 16}
    found = weights(
        parse_model({"image": image, "text": {"name": "hashed-mlp", "hidden": 16, "bins": 368}})
    )
    picture, text = (found[f"encoders.{name}.layers.0.weight"] for name in ("image", "text"))
    assert picture.shape == text.shape
    assert not picture.equal(text)


def test_a_modality_that_the_spec_lacks_is_refused() -> None:
    spec = parse_model({"image": "hog-mlp"})
    with pytest.raises(ConfigError, match=r"no encoder for text; it has image"):
        build_model(spec, ("image", "text"), 0, generator(0))
    with pytest.raises(ConfigError, match="at least one modality"):
        build_model(spec, (), 0, generator(0))


@pytest.mark.usefixtures("others")
def test_encoders_of_other_packages_join() -> None:
    assert encoder_class("ears") is Ears
    assert encoder_options("ears").model_fields["gain"].default == 1.0
    spec = parse_model({"sound": {"name": "ears", "gain": 2}, "text": "hashed-mlp"})
    assert build_model(spec, None, 0, generator(0)).modalities == ("sound", "text")
    assert spec.encoders["sound"].options() == {"gain": 2.0}


@pytest.mark.usefixtures("others")
def test_broken_encoders_of_other_packages_are_named_and_listed() -> None:
    with pytest.raises(ConfigError, match=r"'gone' \(no_such_module:Encoder\) cannot be loaded"):
        encoder_class("gone")
    with pytest.raises(ConfigError, match=r"'odd' .* is not a subclass of motet's Encoder"):
        encoder_class("odd")
    with pytest.raises(ConfigError, match="ears, .*hog-mlp"):
        encoder_class("nothing")
    found: dict[str, Any] = {info.name: info for info in list_encoders()}
    assert found["ears"].about == "Sounds by their mean."
    assert found["ears"].modality == "sound"
    assert "cannot be loaded" in found["gone"].about
