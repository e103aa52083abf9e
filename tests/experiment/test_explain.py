from __future__ import annotations

import pytest

from motet.core import ConfigError
from motet.experiment.explain import nearest, number
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import parse_experiment, with_settings


def complaint(*settings: str, where: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(with_settings(shipped_recipe("creamfl-emoji"), settings), where)
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.roundz=3", "method.roundz: there is no such field; did you mean 'rounds'?"),
        ("method.server.lrr=1", "method.server.lrr: there is no such field; did you mean 'lr'?"),
        (
            "method.server.loss.nam=a",
            "method.server.loss.nam: there is no such field; did you mean 'name'?",
        ),
        ("data.tset=3", "data.tset: there is no such field; did you mean 'test'?"),
        ("titel=x", "titel: there is no such field; did you mean 'title'?"),
        (
            "populations.0.partition.alfa=1",
            "populations.0.partition.alfa: there is no such field; did you mean 'alpha'?",
        ),
        ("server.widht=3", "server.widht: there is no such field; did you mean 'width'?"),
    ],
)
def test_a_misspelt_field_is_answered_with_the_nearest(setting: str, told: str) -> None:
    assert complaint(setting) == told


def test_a_field_like_no_other_is_answered_with_all() -> None:
    told = complaint("engine.zzz=1")
    assert told == (
        "engine.zzz: there is no such field; write one of name, processes, strict, threads, "
        "timeout, retries, live"
    )


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.rounds=many", "method.rounds = 'many': write a whole number"),
        ("method.rounds=1.5", "method.rounds = 1.5: write a whole number"),
        ("method.rounds=null", "method.rounds = null: write a whole number"),
        ("method.server.lr=x", "method.server.lr = 'x': write a number"),
        ("engine.strict=maybe", "engine.strict = 'maybe': write true or false"),
        ("title=[a]", "title = ['a']: write a text"),
        ("populations=3", "populations = 3: write a list such as [a, b]"),
        ("protect.compress=3", "protect.compress = 3: write a mapping such as {key: value}"),
        (
            "method.server.loss=soft",
            "method.server.loss = 'soft': write a mapping of fields (name, tau)",
        ),
        (
            "engine=serial",
            "engine = 'serial': write a mapping of fields (name, processes, strict, threads, "
            "timeout, retries, live)",
        ),
    ],
)
def test_a_wrong_type_is_answered_with_the_right_one(setting: str, told: str) -> None:
    assert complaint(setting) == told


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.rounds=0", "method.rounds = 0: write at least 1"),
        ("method.tau=0", "method.tau = 0: write a value above 0"),
        ("seed=2147483648", "seed = 2147483648: write a value below 2147483648"),
        ("server.width=9999", "server.width = 9999: write at most 8192"),
        ("populations=[]", "populations = []: write at least 1 of them"),
        ("populations.0.partition.alpha=-1", "populations.0.partition.alpha = -1: write at least"),
        ("populations.0.name=A b", "populations.0.name = 'A b': write a text of the form"),
    ],
)
def test_a_value_out_of_bounds_is_answered_with_the_bound(setting: str, told: str) -> None:
    assert complaint(setting).startswith(told)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("method.aggregation=foo", "method.aggregation = 'foo': write one of gca, mean, size"),
        (
            "protect.compress.logits=fp17",
            "protect.compress.logits.name = 'fp17': write one of fp16, int8, qsgd, top-k, "
            "random-k; did you mean 'fp16'?",
        ),
        (
            "protect.compress.logit=fp16",
            "protect.compress.logit: there is no 'logit'; write one of weights, control",
        ),
        (
            "populations.0.partition.name=dirichlett",
            "populations.0.partition.name = 'dirichlett': write one of iid, by_size, dirichlet",
        ),
        ("method=creamfll", "method: there is no method 'creamfll'; write one of bristle"),
        ("method=3", "method: write its name, or a mapping with name and options"),
    ],
)
def test_a_choice_that_is_none_is_answered_with_all(setting: str, told: str) -> None:
    assert complaint(setting).startswith(told)


def test_what_is_missing_is_named_with_its_meaning() -> None:
    told = complaint("populations=[{name: a}]")
    assert told == "populations.0.count: is missing; it says number of sites"


def test_a_misspelling_is_told_rather_than_what_is_missing_for_it() -> None:
    assert "coutn" in complaint("populations=[{name: a, coutn: 3}]")


def test_the_file_comes_first() -> None:
    told = complaint("method.roundz=3", where="my.yaml")
    assert told.startswith("my.yaml: method.roundz: ")
    assert complaint("seed=x", where="my.yaml").startswith("my.yaml: seed = 'x'")


def test_a_long_value_is_shortened() -> None:
    assert len(complaint(f"seed={'x' * 500}")) < 100


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("foo", "--set 'foo': write field=value"),
        ("=3", "--set '=3': write field=value"),
        ("seed=[1", "'[1' is not a YAML value"),
        (
            "populations.7.count=3",
            "there is no entry '7'; write a number from 0 to 2 or its name: image, text, pair",
        ),
        ("populations.x.count=3", "there is no entry 'x'"),
        ("populations.0.models.5.width=3", "there is no entry '5'; write a number from 0 to 1"),
    ],
)
def test_a_setting_that_fits_nowhere_is_refused(setting: str, told: str) -> None:
    assert told in complaint(setting)


def test_an_entry_of_a_list_is_named_by_number_or_name() -> None:
    base = shipped_recipe("creamfl-emoji")
    by_name = with_settings(base, ["populations.text.count=5"])
    assert by_name == with_settings(base, ["populations.1.count=5"])
    assert [entry["count"] for entry in by_name["populations"]] == [2, 5, 4]


def test_nearest_and_number() -> None:
    assert nearest("roundz", ["rounds", "cohort"]) == "; did you mean 'rounds'?"
    assert nearest("zzz", ["rounds"]) == ""
    assert [number(0.0), number(0.5), number(1048576), number(2.0)] == ["0", "0.5", "1048576", "2"]
