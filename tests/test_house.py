"""What holds for the whole tree: who may import whom, sizes, habits, and what is shipped."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "motet"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_LINES = 400

# Package -> the packages of Motet that it may import, beside itself. A new package takes its
# place here: imports go down this list, never up.
MAY_IMPORT: dict[str, set[str]] = {"core": set()}
MAY_IMPORT |= {name: {"core"} for name in ("agent", "nn", "protect", "data", "evaluate")}
MAY_IMPORT["deploy"] = {"agent", "core"}
MAY_IMPORT["engines"] = {"agent", "core", "deploy"}
MAY_IMPORT["models"] = {"core", "data", "nn"}
MAY_IMPORT["protect"] = {"core", "nn"}
MAY_IMPORT["methods"] = set(MAY_IMPORT)
MAY_IMPORT["experiment"] = set(MAY_IMPORT)
MAY_IMPORT["audit"] = set(MAY_IMPORT)
MAY_IMPORT["claims"] = set(MAY_IMPORT)
MAY_IMPORT["motet"] = set(MAY_IMPORT)
MAY_IMPORT["commands"] = {*MAY_IMPORT, "commands"}
MAY_IMPORT["cli"] = set(MAY_IMPORT)
MAY_IMPORT["__main__"] = set(MAY_IMPORT)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def read(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(read(module), filename=str(MODULES[module]))


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(module: str, nodes: Iterator[ast.AST]) -> set[str]:
    """Modules of Motet named by the import statements among these nodes."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            below = {f"{base}.{alias.name}" for alias in node.names}
            # `from package import module` names the module, any other the package.
            found |= {name if name in MODULES else base for name in below}
    return {name for name in found if name.split(".")[0] == "motet"}


def absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    inside = MODULES[module].name == "__init__.py"
    parts = module.split(".")
    parent = parts[: len(parts) - node.level + inside]
    return ".".join([*parent, *([node.module] if node.module else [])])


def when_loaded(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when a module is imported; those for type checkers do not."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from when_loaded(node.body)
            yield from when_loaded(node.orelse)
        elif isinstance(node, ast.Try):
            yield from when_loaded(node.body)


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_imports_go_one_way() -> None:
    wrong = []
    for module in MODULES:
        package = package_of(module)
        assert package in MAY_IMPORT, f"say in MAY_IMPORT where motet.{package} stands"
        for name in imported(module, ast.walk(parse(module))):
            if package_of(name) not in MAY_IMPORT[package] | {package}:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: imported(name, when_loaded(parse(name).body)) - {name} for name in MODULES}
    TopologicalSorter(graph).prepare()


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {name: len(read(name).splitlines()) for name in MODULES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_a_public_module_says_what_it_is() -> None:
    public = [name for name in MODULES if not name.rsplit(".", 1)[-1].startswith("_")]
    assert [name for name in public if not ast.get_docstring(parse(name))] == []


def test_nothing_is_left_undone() -> None:
    undone = re.compile(r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b")
    assert [name for name in MODULES if undone.search(read(name))] == []


def test_no_global_generator_is_seeded() -> None:
    torch_seeds = {"torch.manual_seed", "torch.seed", "torch.default_generator.manual_seed"}
    seeds = {*torch_seeds, "np.random.seed", "random.seed"}
    found = {(module, name) for module in MODULES for name, _ in calls(module) if name in seeds}
    # Inside `seeded` the generator is a fork, put back on the way out.
    assert found == {("motet.core.rng", "torch.default_generator.manual_seed")}


def test_no_file_can_run_code_when_it_is_read() -> None:
    safe = {("torch.load", "weights_only", True), ("np.load", "allow_pickle", False)}
    loaders = {"pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "joblib.load"}
    loaders |= {name for name, _, _ in safe}
    found = [(module, *call) for module in MODULES for call in calls(module) if call[0] in loaders]
    for module, name, call in found:
        given = {
            (name, keyword.arg, keyword.value.value)
            for keyword in call.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        assert given & safe, f"{module}, line {call.lineno}: {name}"


def test_a_public_face_names_what_is_there() -> None:
    faces = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    for face in [importlib.import_module(name) for name in faces if len(parse(name).body) > 1]:
        assert [name for name in face.__all__ if not hasattr(face, name)] == [], face.__name__
        assert len(set(face.__all__)) == len(face.__all__), face.__name__


def test_the_command_line_starts_light() -> None:
    script = "import sys, motet, motet.cli; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "matplotlib", "pyarrow", "datasets"}
    assert not heavy & set(result.stdout.split())


def test_the_command_exists() -> None:
    module, function = project()["project"]["scripts"]["motet"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    data = sorted((SOURCE / "data" / "bundled").glob("*.parquet"))
    assert data, "the bundled data are missing from the tree"
    recipes = sorted(ROOT.glob("recipes/*.yaml"))
    assert recipes
    wanted = {path.relative_to(SOURCE.parent) for path in [*FILES, *data, SOURCE / "py.typed"]}
    wanted |= {"motet" / path.relative_to(ROOT) for path in recipes}
    assert {path.as_posix() for path in wanted} <= held
    licences = {Path(name).name for name in held if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    assert not [name for name in held if not name.startswith("motet")]


def test_the_licence_is_the_one_declared() -> None:
    assert project()["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]
    assert (ROOT / "NOTICE").read_text(encoding="utf-8").strip()


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    requirements = [*project()["project"]["dependencies"]]
    for extra in project()["project"]["optional-dependencies"].values():
        requirements += extra
    for text in requirements:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), text
