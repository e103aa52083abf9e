from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conformance.tiny import Case, data
from tests.conformance.tiny import experiment as tiny

import motet.audit
from motet.audit.context import Context, last_reply
from motet.audit.options import AuditOptions, Ledger
from motet.audit.outcome import NONE, AuditResult
from motet.audit.report import markdown, page, sentences, write_audit
from motet.audit.run import audit
from motet.audit.tap import Enough
from motet.audit.watch import audited_sites, swapped, watch
from motet.commands.audit import audit_target
from motet.core import ConfigError, Kind
from motet.core.tree import leaves
from motet.data import load_data
from motet.experiment.build import build_parties
from motet.experiment.runner import RECIPE, run
from motet.experiment.spec import Experiment

QUICK = {"pictures": 1, "budget": 4, "rounds": 1}


@pytest.fixture(autouse=True)
def _made_up_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made_up = lambda name, **options: data() if name == "emoji" else load_data(name, **options)  # noqa: E731
    monkeypatch.setattr("motet.experiment.build.load_data", made_up)
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path / "cache"))


def tried(method: str, *settings: str, **options: Any) -> AuditResult:
    return audit(tiny(Case(method), *settings), AuditOptions(**{**QUICK, **options}))


def gaps(result: AuditResult) -> str:
    return "; ".join(f"{gap.what}: {gap.why}" for gap in result.gaps)


def plain(result: AuditResult) -> dict[str, Any]:
    return replace(result, seconds=0.0).plain()


@pytest.mark.usefixtures("rng_untouched")
def test_a_gradient_of_one_picture_gives_it_away_and_noise_hides_it() -> None:
    result = tried("fedsgd", attacks=("analytic", "dlg"), pictures=2, defences=("noise:1",))
    (bare,) = result.of("analytic", "psnr")
    (noisy,) = result.of("analytic", "psnr", "noise:1")
    # Single precision is all that stands between the upload and the picture.
    assert bare.mean > 60
    assert bare.guess < 30
    assert noisy.mean < 30
    assert [seed for seed, _ in bare.values] == [0, 0]
    assert result.of("dlg", "ssim")[0].chance
    assert [(shot.attack, shot.defence) for shot in result.shots] == [
        ("analytic", NONE),
        ("dlg", NONE),
        ("analytic", "noise:1"),
        ("dlg", "noise:1"),
    ] * 2
    assert all(shot.original.startswith("data:image/png;base64,") for shot in result.shots)
    assert "its answer to 'gradient' in round 0, gradients of" in result.seen[0]


def test_weights_after_local_steps_are_turned_into_a_gradient() -> None:
    result = tried("fedavg", "method.local.lr=0.05", attacks=("analytic",), defences=())
    (bare,) = result.of("analytic", "psnr")
    # One picture, one epoch: one step.
    assert bare.mean > 50


def test_a_run_with_a_trusted_root_is_audited_like_any_other() -> None:
    root = ("protect.robust.name=fltrust", "protect.robust.root=4")
    result = tried("fedavg", "method.local.lr=0.05", *root, attacks=("analytic",), defences=())
    assert result.of("analytic", "psnr")


def test_all_attacks_on_gradients_have_a_line() -> None:
    result = tried("fedsgd", budget=6, defences=("sparsification:90", "soteria"))
    names = {cell.attack for cell in result.cells}
    assert names == {
        "label inference",
        *("analytic", "dlg", "idlg", "inverting-gradients", "latent", "gifd"),
        *("loss", "calibrated loss", "likelihood ratio"),
    }
    by_defence = {cell.defence for cell in result.cells if cell.figure == "psnr"}
    assert by_defence == {NONE, "sparsification:90", "soteria:80"}
    # A membership test has no pictures to rank units by.
    assert "soteria:80" not in {cell.defence for cell in result.cells if cell.figure == "auc"}


def test_members_are_told_from_as_many_others_beside_a_control() -> None:
    result = tried("fedavg", "method.local.epochs=3", attacks=("membership",), defences=("noise",))
    for attack in ("loss", "calibrated loss", "likelihood ratio"):
        cells = result.of(attack, "auc")
        assert [cell.control for cell in cells] == [False, True]
        # The control is another run, of which the same rows are asked.
        assert cells[0].values != cells[1].values or cells[0].intervals != cells[1].intervals
        assert all(len(cell.intervals) == 1 for cell in cells)
        assert all(cell.guess == 0.5 for cell in cells)
        assert len(result.of(attack, "auc", "noise:1")) == 1
    assert "4 members and as many others" in " ".join(result.seen)


def context(method: str, *settings: str, **options: Any) -> Context:
    experiment = tiny(Case(method), *settings)
    parties = build_parties(experiment)
    wanted = AuditOptions(**{**QUICK, **options})
    sites = audited_sites(experiment, parties, wanted.site)
    return Context(experiment, parties, wanted, sites, Ledger(experiment.seed))


def test_the_watched_site_holds_members_alone_and_the_controls_neither_half() -> None:
    found = context("fedavg")
    (site,) = found.sites
    mine, theirs = found.tested(site)
    held = set(found.split[site][0].rows.tolist())
    assert set(mine.rows.tolist()) <= held
    assert not set(theirs.rows.tolist()) & held
    strangers = found._strangers(site, 5)
    assert len(strangers) == 5
    own = set(found.spec(site).data.rows.tolist())
    assert not set(strangers.rows.tolist()) & own
    assert set(found.strangers_to(site)) == {s.name for s in found.parties.sites} - {site}
    replies = [last_reply(tap, site, "train", "weights") for tap in (found.main, found.control)]
    values = [item.reply["weights"] for item in replies if item is not None]
    assert any(not torch.equal(a, values[1][name]) for name, a in values[0].items())
    assert found.main.of(site)[0].reply["samples"] == len(held)


def test_those_who_share_a_unit_are_no_strangers() -> None:
    found = context("creamfl")
    # Each population shares out all private rows, so that others may hold the same.
    rows = {spec.name: set(spec.data.rows.tolist()) for spec in found.parties.sites}
    for site in found.sites:
        for other in found.strangers_to(site):
            assert not rows[site] & rows[other]
            assert other not in found.sites


def test_public_rows_are_drawn_recognised_and_tell_of_members() -> None:
    result = tried("creamfl", defences=("noise:2",))
    on = {cell.on for cell in result.cells}
    assert on == {
        "representations of a site of 'image', public images taken for unknown",
        "representations of a site of 'image', private rows of a site",
        "representations of a site of 'text', public texts taken for unknown",
        "representations of a site of 'text', private rows of a site",
        "representations of a site of 'pair', public images taken for unknown",
        "representations of a site of 'pair', public texts taken for unknown",
        "representations of a site of 'pair', private rows of a site",
    }
    for attack, figure in (
        ("decoder", "psnr"),
        ("nearest known picture", "ssim"),
        ("retrieval", "found"),
        ("nearest known text", "overlap"),
        ("loss of a copy", "auc"),
    ):
        assert result.of(attack, figure)
        assert result.of(attack, figure, "noise:2")
    # A quarter of 24 public texts, beside the 16 of the test set.
    assert result.of("retrieval", "found")[0].guess == pytest.approx(100 / 22)
    assert len(result.of("retrieval", "found")[0].values) == 6


def test_class_scores_of_public_rows_are_read_too() -> None:
    result = tried("fedmd", "data.public=30", "method.public_rows=20", defences=())
    assert len(result.of("decoder", "psnr")[0].values) == 5
    assert result.of("loss of a copy", "auc")
    assert result.of("likelihood ratio of a copy", "auc")
    assert "logits" in result.cells[0].on


def test_activations_are_drawn_by_a_site_that_the_hub_plays() -> None:
    result = tried("sfprompt", defences=("noise", "soteria"), attacks=("decoder",))
    (bare,) = result.of("decoder", "psnr")
    (noisy,) = result.of("decoder", "psnr", "noise:1")
    assert bare.mean > noisy.mean
    assert "1 picture of a site, learnt from 24 public pictures" in bare.on
    assert not result.of("decoder", "psnr", "soteria:80")


def test_under_a_secret_sum_there_is_nothing_to_attack() -> None:
    result = tried("fedavg", "protect.secure_sum={}")
    assert result.cells == ()
    assert "no individual upload of weights is visible to the server" in gaps(result)
    assert result.protection == ("protect.secure_sum: on",)
    assert sentences(result)[0].startswith("No attack of this audit fits")


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("frl", "votes (votes): no attack on votes exists here"),
        ("local-only", "nothing but metrics leaves a site of LocalOnly"),
        ("fedproto", "it is sent for other things than public rows"),
        ("fedper", "a part of the model stays at the site"),
        ("fedpub", "too few rows to be halved, or those of one graph"),
    ],
)
def test_what_is_not_tried_is_said_with_its_reason(method: str, told: str) -> None:
    result = tried(method, defences=())
    assert told in gaps(result)


def test_what_was_left_out_is_said() -> None:
    result = tried("fedsgd", attacks=("analytic",), defences=())
    assert "dlg, idlg, inverting-gradients" in gaps(result)
    assert "left out by the options of this audit" in gaps(result)
    assert "GradInversion" in gaps(result)
    assert len(result.limits) >= 4


def test_equal_audits_are_equal_and_seeds_are_joined() -> None:
    quick = {"attacks": ("idlg", "membership"), "defences": ("noise",), "budget": 2}
    one, again = tried("fedsgd", **quick), tried("fedsgd", **quick)
    assert plain(one) == plain(again)
    both = tried("fedsgd", seeds=(0, 1), **quick)
    assert both.seeds == (0, 1)
    for cell in both.cells:
        (mine,) = [
            c
            for c in one.cells
            if (c.attack, c.figure, c.defence, c.control)
            == (cell.attack, cell.figure, cell.defence, cell.control)
        ]
        assert cell.values[: len(mine.values)] == mine.values
        assert {seed for seed, _ in cell.values} == {0, 1}
        assert cell.spread >= 0


def test_a_run_is_audited_from_its_folder_which_stays_as_it_is(tmp_path: Path) -> None:
    experiment = tiny(Case("fedsgd"))
    run(experiment, folder=tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    options = AuditOptions(**{**QUICK, "attacks": ("analytic",), "defences": ()})
    result = audit(tmp_path / "run", options)
    assert plain(result) == plain(audit(experiment, options))
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    with pytest.raises(ConfigError, match=RECIPE):
        audit(tmp_path, options)


def test_one_site_of_each_population_is_audited_or_the_one_that_is_named() -> None:
    experiment = tiny(Case("creamfl"), "method.cohort=6")
    parties = build_parties(experiment)
    assert audited_sites(experiment, parties, None) == ("image-1", "pair-1", "text-1")
    assert audited_sites(experiment, parties, "pair-2") == ("pair-2",)
    with pytest.raises(ConfigError, match="--site 'pair-9': there is no such site"):
        audited_sites(experiment, parties, "pair-9")


def test_a_site_that_is_never_asked_is_no_error() -> None:
    found = context("fedavg", "method.cohort=1")
    (asked,) = found.sites
    silent = next(spec.name for spec in found.parties.sites if spec.name != asked)
    result = tried("fedavg", "method.cohort=1", "method.rounds=1", site=silent)
    assert result.cells == ()
    assert f"{silent} sent no 'weights'" in gaps(result)


def test_watching_ends_with_the_rounds_and_swaps_rows() -> None:
    experiment = tiny(Case("fedavg"), "method.rounds=9", "method.cohort=6")
    parties = build_parties(experiment)
    site = parties.sites[0]
    fewer = site.data.take([0, 1])
    tap = watch(experiment, parties, (site.name,), rounds=2, holding={site.name: fewer})
    found = [item for item in tap.seen if item.op == "train"]
    assert [(item.site, item.round) for item in found] == [(site.name, 0), (site.name, 1)]
    assert found[0].reply["samples"] == 2
    assert [len(spec.data) for spec in swapped(parties, {}).sites] == [
        len(spec.data) for spec in parties.sites
    ]
    with pytest.raises(Enough):
        raise Enough


def test_the_page_holds_tables_pictures_and_reasons(tmp_path: Path) -> None:
    result = tried("fedsgd", "title='<b>x</b> | y'", attacks=("analytic", "membership"))
    html = page(result)
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "<b>x</b>" not in html
    made = sum(html.count(f'src="{shot.made}"') > 0 for shot in result.shots)
    assert made == len(result.shots) == 4
    for text in ("What was not tried", "What these figures do not show", "control: the site never"):
        assert text in html
    assert "http" not in html.replace("http-equiv", "")
    assert write_audit(result, tmp_path) == tmp_path / "audit.html"
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["cells"][0]["mean"] == result.cells[0].mean
    assert told["seeds"] == [0]
    text = markdown(result)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| analytic | PSNR, dB |" in text
    assert "GGL" in text


def test_the_worst_is_told_in_words() -> None:
    result = tried("fedsgd", attacks=("analytic", "membership"), defences=("noise",))
    first, second = sentences(result)
    assert first.startswith("Pictures: analytic comes to")
    assert "under noise:1" in first
    assert second.startswith("Members: the best of 3 attacks has an AUC of")
    assert "where the site never saw the rows" in second


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    run(tiny(Case("fedsgd")), folder="there")

    def call(**options: Any) -> None:
        given: dict[str, Any] = {
            **{"site": None, "attacks": ["analytic"], "defences": [], "pictures": 1},
            **{"budget": 4, "folder": None},
            **options,
        }
        audit_target("there", [], [], **given)

    call(defences=["none"])
    printed = capsys.readouterr().out
    assert "Gradients of a site, 1 picture behind an upload" in printed
    assert "no defence" in printed
    assert "noise:1" not in printed
    assert "report: there/audit.html" in printed
    assert Path("there/audit.json").exists()
    call(defences=["noise:0.5"], folder=Path("other"))
    assert "noise:0.5" in capsys.readouterr().out
    assert Path("other/audit.html").exists()
    for options, told in (
        ({"attacks": ["magic"]}, "--attack 'magic': there is no such attack"),
        ({"defences": ["magic"]}, "--defence 'magic': there is no such defence"),
        ({"defences": ["noise:x"]}, "'x' is no strength"),
        ({"pictures": 0}, "pictures"),
        ({"site": "nobody"}, "--site 'nobody'"),
    ):
        with pytest.raises(ConfigError, match=told):
            call(**options)


def test_public_names_are_there_once_and_sorted() -> None:
    names = motet.audit.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(motet.audit, name) for name in names)
    assert sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n)) == names


def test_a_gradient_that_is_seen_is_the_one_that_was_sent() -> None:
    found = context("fedsgd")
    (site,) = found.sites
    seen = found.main.of(site, Kind.GRADIENTS)[0]
    parameters = {name for name, _ in leaves({"a": seen.sent["weights"]})}
    assert {name for name, _ in leaves({"a": seen.reply["gradients"]})} <= parameters


def test_experiments_stay_as_they_are() -> None:
    experiment: Experiment = tiny(Case("fedsgd"))
    before = experiment.plain()
    audit(experiment, AuditOptions(**{**QUICK, "attacks": ("analytic",), "seeds": (3,)}))
    assert experiment.plain() == before
