"""The rules of the house: who may import whom, what is public, what stays light."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pluribus
from pluribus.cli.main import COMMANDS, _parser

from .small import make_job, make_model, make_pool, make_setting

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pluribus"
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "core": 0,
    "hardware": 1, "kernels": 1, "model": 1, "spec": 1, "store": 1,
    "nn": 2, "predict": 2,
    "comm": 3, "compress": 3, "plan": 3,
    "measure": 4, "resilience": 4,
    "serve": 5, "train": 5,
    "grid": 6,
    "dashboard": 7,
    "cli": 8,
}  # fmt: skip
DOORS = ("__init__.py", "_api.py", "_version.py")  # directly in the package, on no floor
PURE = ("core", "hardware", "model", "plan", "predict", "spec")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module an import names, at any depth; ``from a import b`` yields ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the house imports by full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


def wrong_imports(room: str, tree: ast.AST) -> list[str]:
    """Imports that lead to a neighbour on the same floor, or upward."""
    wrong = []
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] != "pluribus" or len(parts) < 2:
            continue
        target = parts[1]
        known = target in FLOORS and target != room
        if known and FLOORS[target] >= FLOORS[room]:
            wrong.append(name)
    return wrong


def run_python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(file) for file in FILES} - set(DOORS)
    assert rooms <= set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(file: Path) -> None:
    if file.parent == PACKAGE and file.name in DOORS:
        return
    assert wrong_imports(room_of(file), ast.parse(file.read_text())) == []


@pytest.mark.parametrize(
    ("room", "code", "expected"),
    [
        ("predict", "from pluribus.spec.plan import Plan", []),
        ("plan", "import pluribus.plan.split", []),
        ("predict", "from pluribus.nn.loss import loss", ["pluribus.nn.loss"]),
        ("spec", "if TYPE_CHECKING:\n    import pluribus.model.model", ["pluribus.model.model"]),
        ("core", "def f():\n    from pluribus import plan", ["pluribus.plan"]),
    ],
)
def test_the_import_rule_sees_every_kind_of_import(
    room: str, code: str, expected: list[str]
) -> None:
    found = wrong_imports(room, ast.parse(code))
    assert [name for name in found if name in expected] == expected
    assert bool(found) == bool(expected)


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_have_no_torch_clock_network_or_chance(room: str) -> None:
    forbidden = {
        "torch", "time", "datetime", "random", "socket", "subprocess", "urllib", "http",
        "multiprocessing", "threading", "asyncio",
    }  # fmt: skip
    for file in (PACKAGE / room).rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = list(imports(tree))
        # A compiler only makes the same results sooner.
        allowed = {"subprocess"} if file == PACKAGE / "core" / "native.py" else set()
        assert not {name.split(".")[0] for name in names} & forbidden - allowed, file
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes & {"environ", "environb", "getenv", "putenv"}, file
        assert not {"os.environ", "os.getenv", "numpy.random"} & set(names), file
        chance = (
            node.attr == "random" and isinstance(node.value, ast.Name) and node.value.id == "np"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
        )
        assert not any(chance), file


def test_planning_and_predicting_import_no_torch() -> None:
    code = (
        "import sys\nimport pluribus.plan.search, pluribus.predict.predict\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


def test_the_plan_command_imports_no_torch(tmp_path: Path) -> None:
    setting = make_setting([make_pool("a"), make_pool("b")], make_model(), make_job())
    setting.cluster.save(tmp_path / "cluster.toml")
    (tmp_path / "config.json").write_text(json.dumps(dict(setting.model.config)))
    (tmp_path / "job.toml").write_text(
        '[model]\nconfig = "config.json"\n[data]\ntokens = "*.bin"\n[train]\n'
        "sequence_length = 128\nglobal_batch_tokens = 1024\nsteps = 5\n"
    )
    code = (
        "import sys\nfrom pluribus.cli.main import main\nassert main(sys.argv[1:]) == 0\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    printed = run_python(code, "plan", str(tmp_path / "job.toml"))
    assert "Who does what" in printed
    assert (tmp_path / "plan.json").exists()


def test_the_public_names() -> None:
    assert pluribus.__all__ == sorted(pluribus.__all__)
    assert pluribus.__all__ == [
        "Calibration", "Chip", "Cluster", "Job", "Model", "Plan", "PluribusError", "Prediction",
        "Profile", "__version__", "calibrate", "plan", "predict", "probe", "profile", "report",
        "train",
    ]  # fmt: skip
    for name in pluribus.__all__:
        assert getattr(pluribus, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Cloud'"):
        pluribus.Cloud  # noqa: B018


def test_importing_a_room_leaves_the_function_of_its_name() -> None:
    code = (
        "import pluribus as pl\nimport pluribus.plan.search, pluribus.predict.predict\n"
        "import pluribus.train.run\n"
        "print(*(callable(f) for f in (pl.plan, pl.predict, pl.train)))"
    )
    assert run_python(code).split() == ["True"] * 3


# Positional arguments by name, options by their dashes.
COMMAND_LINE = {
    "aggregator": ["--host", "--port", "--token-file"],
    "demo": ["--folder", "--json", "--seconds"],
    "calibrate": ["--json", "--out", "runs"],
    "comm": [
        "--chosen", "--codec", "--json", "--mib", "--operations", "--picture", "--ranks",
        "--repeats", "what",
    ],
    "plan": [
        "--calibration", "--cluster", "--html", "--json", "--out", "--pareto", "--profile",
        "--trial", "--trial-steps", "job",
    ],
    "predict": ["--calibration", "--html", "--json", "--profile", "--trace", "plan"],
    "probe": ["--force", "--json", "--out"],
    "profile": [
        "--chip", "--cluster", "--from-aic", "--import", "--json", "--model", "--operators",
        "--out", "--precision", "--sequence-length", "job",
    ],
    "replan": [
        "--gained", "--json", "--lasting-steps", "--lost", "--out", "--slower", "plan",
    ],
    "report": ["--json", "folder"],
    "train": ["--backend", "--codec", "--folder", "--fresh", "--json", "--steps", "plan"],
}  # fmt: skip


def test_the_commands() -> None:
    assert sorted(COMMANDS) == sorted(COMMAND_LINE)


@pytest.mark.parametrize("name", sorted(COMMAND_LINE))
def test_the_options_of_a_command(name: str) -> None:
    parser, module = _parser([name])
    assert module is not None
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    words: list[str] = []
    for action in commands.choices[name]._actions:
        words += action.option_strings or [action.dest]
    assert sorted(set(words) - {"-h", "--help"}) == COMMAND_LINE[name]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom pluribus.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('modules:', *sys.modules)"
    )
    page, _, modules = run_python(code).partition("modules:")
    assert "pluribus probe" in page
    loaded = modules.split()
    assert not {"torch", "numpy", "rich"} & set(loaded)
    rooms = {name.split(".")[1] for name in loaded if name.startswith("pluribus.")}
    # The rooms that share a name with a public function are bound, but empty.
    assert rooms <= {"core", "cli", "_api", "_version", "plan", "predict", "train"}
    deep = [name for name in loaded if name.startswith("pluribus.") and name.count(".") > 1]
    assert {name.split(".")[1] for name in deep} <= {"core", "cli"}


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.name == "__init__.py" and file.parent != PACKAGE],
    ids=lambda file: str(file.parent.relative_to(PACKAGE)),
)
def test_a_rooms_init_is_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert len(tree.body) == 1
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 400
