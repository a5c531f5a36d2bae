"""`effcompress new`: of every kind a plugin that works as it is, with a test that passes."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.commands.new import ELSEWHERE, new, templates_of
from effcompress.errors import PluginError, RunError
from effcompress.injectable import INPUTS
from effcompress.registry import REGISTRY
from effcompress.runner import run as story
from tests.runner.toys import recipe

ROOT = Path(__file__).parents[2]
KINDS = [kind for kind in INPUTS if kind not in ELSEWHERE]


def snippet(file: Path) -> str:
    """What the docstring of a plugin file says to write in a recipe."""
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return textwrap.dedent(said.partition("Beside a recipe:\n")[2])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    for kind in KINDS:
        new(kind, f"new_{kind}", folder)
    return folder


def test_there_is_a_template_and_a_test_for_every_kind() -> None:
    assert {*templates_of()} == {part for kind in KINDS for part in (kind, f"test_{kind}")}


def test_the_tests_pass_as_they_are(written: Path) -> None:
    """Without the options of this project, and with them."""
    files = sorted(written.glob("test_*.py"))
    assert len(files) == len(KINDS) == 15
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written)],
        cwd=written,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 2 * len(KINDS) - 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_in_the_docstring_checks_and_runs(
    kind: str,
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, file = recipe(tmp_path), tmp_path / f"new_{kind}.py"
    file.write_text((written / file.name).read_text())
    said = snippet(file)
    assert f"plugins: [new_{kind}.py]" in said
    path = tmp_path / "own.yaml"
    path.write_text(f"include: {base.name}\n{said}")
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    assert ended.value.code == 0, capsys.readouterr().err
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    done = run(load_recipe(path, ["evaluate.new_tokens=2"]), output=tmp_path / "out")
    assert done.removed or done.zeroed
    plugin = REGISTRY.get(kind, f"new_{kind}")
    assert plugin.where.startswith(str(file)) and len(plugin.summary) > 10


def test_a_formula_that_is_changed_fails_its_test(written: Path, tmp_path: Path) -> None:
    """The tests that are written can fail."""
    wrong = {
        "criterion": ("abs().pow(power)", "pow(2).pow(power)"),
        "repair": ("before / after.clamp", "after / before.clamp"),
        "schedule": ("left**power", "left"),
        "sparsifier": ("score, pattern or sparsity", "score, sparsity"),
    }
    for kind, (right, instead) in wrong.items():
        text = (written / f"new_{kind}.py").read_text()
        assert right in text
        (tmp_path / f"new_{kind}.py").write_text(text.replace(right, instead))
        (tmp_path / f"test_new_{kind}.py").write_text((written / f"test_new_{kind}.py").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    for kind in wrong:
        assert re.search(rf"FAILED test_new_{kind}\.py", done.stdout), kind


def test_what_is_written_is_linted(written: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "100", str(written)],
        capture_output=True,
        text=True,
    )
    if "No module named" in done.stderr:
        pytest.skip("ruff is not installed")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("criterion", "taylor", "there is a criterion 'taylor' already"),
        ("criterion", "2fast", "cannot be the name"),
        ("criterion", "two words", "cannot be the name"),
        ("criterion", "../up", "cannot be the name"),
        ("criterion", "größe", "cannot be the name"),
        ("criterion", "lambda", "cannot be the name"),
        ("criterion", "weight", "has a meaning in plugin files"),
        ("criterion", "power", "has a meaning in plugin files"),
        ("schedule", "enough_steps", "has a meaning in plugin files"),
        ("statistic", "gram", "has a meaning in plugin files"),
        ("selector", "statistics", "is a Python module already"),
        ("critrion", "mine", "no kind of plugin named 'critrion'"),
        ("selector.observe", "mine", "no kind of plugin"),
        ("family", "mine", "is not written from a template"),
    ],
)
def test_names_that_cannot_be(
    kind: str, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["new", kind, name, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and len(error.splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_family_is_written_by_inspect() -> None:
    with pytest.raises(PluginError) as refused:
        new("family", "mine", Path())
    assert "inspect FOLDER --template FILE" in (refused.value.fix or "")


@pytest.mark.parametrize("file", ["own_one.py", "test_own_one.py"])
def test_files_stay_as_they_are(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("mine")
    with pytest.raises(PluginError, match="this file is there already"):
        new("criterion", "own_one", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        new("criterion", "own_two", tmp_path / "file")


def test_what_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["new", "reduction", "own_three", "--output", str(tmp_path / "a" / "b")])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "own_three.py" in said and "pytest" in said
