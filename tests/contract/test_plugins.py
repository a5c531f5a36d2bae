"""Published methods are plugins like a user's own: public names only, found as installed packages
are, and unknown to the package.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import effcompress
from effcompress.registry import ENTRY_POINTS, REGISTRY

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path for path in (ROOT / "plugins").glob("*.py") if path.stem != "__init__")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
METHODS = (
    "slicegpt",
    *("flap", "wanda", "sparsegpt", "minitron", "shortgpt", "llm.?pruner", "adapt.?pruner"),
    *("adapt.?accel", "efficientllm", "mask_fisher", "mask_taylor", "least_squares"),
    *("sheared", r"cofi\b", "hard_concrete", "lagrangian", "learned_gates", "common_offset"),
    *("ziplm", "darwinlm", "dynamic_program", r"\"evolution", "spdy"),
    *("block_influence", "depth_order", "obs_update", "obs_bias", "bias_mean", "cost_aware"),
    *("2ssp", "two_ssp", "sequence_norm", "width_first", "two_stages"),
)


def test_every_plugin_has_a_paper_and_a_sentence() -> None:
    places = (str(Path(effcompress.__file__).parent), str(ROOT / "plugins"))
    # Those of recipes that other tests loaded in this process are theirs.
    plugins = [p for p in REGISTRY.all() if str(Path(p.where).resolve()).startswith(places)]
    assert len(plugins) >= 40
    for plugin in plugins:
        assert plugin.paper, plugin.name
        assert len(plugin.summary) > 10, plugin.name


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
def test_a_method_uses_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert names <= {"torch", "math"}, f"{path.name} imports {names}"
        if isinstance(node, ast.ImportFrom):
            allowed = ("__future__", "typing", "collections.abc", "torch", "torch.nn.functional")
            if node.module == "effcompress":
                private = {alias.name for alias in node.names} - set(effcompress.__all__)
                assert not private, f"{path.name} uses {private}"
            else:
                assert node.module in allowed, f"{path.name} imports {node.module}"


def test_every_method_is_an_entry_point() -> None:
    entries = PROJECT["project"]["entry-points"][ENTRY_POINTS]
    assert entries == {path.stem: f"effcompress_plugins.{path.stem}" for path in PLUGINS}


def test_the_package_knows_no_method_by_name() -> None:
    pattern = re.compile("|".join(METHODS), re.IGNORECASE)
    folder = ROOT / "effcompress"
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in sorted(folder.rglob("*.py"))
        for match in pattern.finditer(path.read_text())
    ]
    assert not found


def test_all_folders_of_the_package_are_built() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "effcompress").rglob("__init__.py")
    }
    assert {*PROJECT["tool"]["setuptools"]["packages"]} == folders | {"effcompress_plugins"}


RECIPE = """\
name: shipped
model: {random: true, shape: {model_type: llama, hidden_size: 32, intermediate_size: 48,
  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 259,
  max_position_embeddings: 64}, tokenizer: bytes}
data: {domains: {text: {txt: text.txt}}, sequence_length: 16}
prune:
  target: {keep: 80%}
  space: [ffn]
  criterion: flap
  measure: {source: calibration, sequences: 2}
  repair: [norm_gain, bias_mean]
  schedule: once
evaluate: {sequences: 2}
"""


def test_a_wheel_brings_the_methods(tmp_path: Path) -> None:
    """Built, installed into an environment that has only the dependencies, and used from a folder
    that knows nothing of this one.
    """
    source = tmp_path / "source"  # setuptools leaves a folder `build` beside what it builds
    for name in ("effcompress", "plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("effcompress-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("effcompress_plugins/")}
    ours = [*(ROOT / "plugins").glob("*.py"), *(ROOT / "plugins" / "drafts").glob("*")]
    assert shipped == {f"effcompress_plugins/{p.relative_to(ROOT / 'plugins')}" for p in ours}

    target, work = tmp_path / "installed", tmp_path / "elsewhere"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target"]
    subprocess.run([*install, str(target), str(wheel)], check=True)
    (work / "recipe.yaml").write_text(RECIPE)
    text = "\n\n".join(f"Paragraph {n} of a text about nothing at all." for n in range(60))
    (work / "text.txt").write_text(text)
    command = [sys.executable, "-m", "effcompress", "run", "recipe.yaml", "--output", "out"]
    # PYTHONPATH lies in front of site-packages, where the checkout may be installed.
    done = subprocess.run(
        command,
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "config.json").is_file()
    where = [sys.executable, "-m", "effcompress", "plugins", "show", "criterion/flap", "--json"]
    shown = subprocess.run(
        where,
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert "installed/effcompress_plugins/flap.py" in shown.stdout, shown.stderr
