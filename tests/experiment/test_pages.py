from __future__ import annotations

import re
from pathlib import Path

import pytest

from motet.data import list_data
from motet.experiment import pages
from motet.experiment.pages import method_page, table, tables_in, travels_table, write_pages
from motet.methods.registry import METHODS, method_class
from motet.models import list_encoders

ROOT = Path(__file__).resolve().parents[2]
CLAIM = """# Claim

| must come out | measured |
|---|---|
| more | +3 |

Some words.

| arm | rsum |
|---|---|
| creamfl | 103 |
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_pages(tmp_path)
    return tmp_path


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_every_page_is_written(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    methods = {f"methods/{name}.md" for name in METHODS}
    assert names == {"methods/index.md", "models.md", "data.md", *methods}


def test_pages_are_the_same_each_time_and_returned(written: Path) -> None:
    before = {path: path.read_text() for path in written.rglob("*.md")}
    assert set(write_pages(written)) == set(before)
    assert {path: path.read_text() for path in written.rglob("*.md")} == before


@pytest.mark.parametrize("name", METHODS)
def test_a_method_page_tells_what_the_class_says(name: str) -> None:
    page = method_page(name)
    cls = method_class(name)
    about = cls.about()
    assert page.startswith(f"# {cls.__name__}\n")
    assert f"**Paper:** {about['paper']}" in page
    assert f"**What travels:** {about['travels']}" in page
    assert f"src/{cls.__module__.replace('.', '/')}.py" in page
    assert "def run(self, fed: Federation) -> None:\n    " in page
    rounds = cls.model_fields["rounds"].default
    assert f"| `rounds` | int | `{rounds}` | >= 1 |" in page
    assert "## Figures" not in page


def test_nested_hyper_parameters_have_the_methods_own_defaults() -> None:
    assert "| `distil.weight` | float | `0.3` | >= 0 |" in method_page("creamfl")
    assert "| `distil.weight` | float | `0.25` | >= 0 |" in method_page("fedgems")


def test_a_recipe_of_the_method_is_named() -> None:
    assert "motet run creamfl-emoji" in method_page("creamfl")
    assert "motet run creamfl-emoji" not in method_page("modal-fedmd")


def test_the_figures_of_a_claim_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "creamfl.md").write_text(CLAIM)
    write_pages(tmp_path)
    page = (tmp_path / "methods" / "creamfl.md").read_text()
    assert "| creamfl | 103 |" in page
    assert "(../claims/creamfl.md)" in page
    assert "Some words" not in page
    assert "## Figures" not in (tmp_path / "methods" / "modal-fedmd.md").read_text()


def test_models_and_data_are_listed_with_their_options(written: Path) -> None:
    models, data = (written / "models.md").read_text(), (written / "data.md").read_text()
    for encoder in list_encoders():
        assert f"\n## {encoder.name}\n" in models
    for info in list_data():
        assert f"\n## {info.name}\n" in data
    assert "| `depth` | one of 8, 14, 18, 20 | `8` |" in models
    assert "| `path` | Path | must be given |" in data


def test_what_is_installed_beside_motet_is_not_in_its_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from motet.data.registry import DatasetInfo

    stranger = DatasetInfo("strange", "another", "somewhere", "none", "other.package:load")
    monkeypatch.setattr(pages, "list_data", lambda: (*list_data(), stranger))
    assert "strange" not in pages.data_page()


def test_all_tables_are_whole(written: Path) -> None:
    for path in written.rglob("*.md"):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            widths = {len(cells_of(line)) for line in block.splitlines()}
            assert len(widths) == 1, path


def test_a_cell_cannot_break_its_row() -> None:
    lines = table(("a", "b"), [("x | y", "over\ntwo  lines ``code``")])
    assert lines[2] == r"| x \| y | over two lines `code` |"


def test_tables_are_found_on_a_page() -> None:
    assert tables_in(CLAIM)[:3] == ["| must come out | measured |", "|---|---|", "| more | +3 |"]
    assert tables_in(CLAIM)[3:5] == ["", "| arm | rsum |"]
    assert tables_in("no table\n") == []


def test_families_follow_from_what_sites_send() -> None:
    families = {name: pages.family_of(method_class(name)) for name in METHODS}
    assert families["creamfl"] == "exchanges representations"
    assert families["fediot"] == "averages weights"
    assert families["modal-central"] == "reference"


def test_the_table_of_what_travels_has_a_row_per_method() -> None:
    rows = [cells_of(line) for line in travels_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{name}`" for name in METHODS]
    assert all(row[1] for row in rows)


def test_the_readme_has_exactly_that_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- travels:begin -->\n(.*?)<!-- travels:end -->", readme, re.DOTALL)
    assert len(found) == 1, "README.md needs the two markers once, each on a line of its own"
    assert found[0].strip() == travels_table(), "put motet.experiment.pages.travels_table() there"
