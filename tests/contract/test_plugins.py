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
import tarfile
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


PACKED = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
PACKED += ("CONTRIBUTING.md", "constraints.txt")


def of_package(name: str) -> set[str]:
    """Files of a package, as a wheel has them."""
    folder = ROOT / name.replace("effcompress_plugins", "plugins")
    every = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {f"{name}/{path.relative_to(folder)}" for path in every}


def archives(folder: Path) -> tuple[Path, Path]:
    """The source archive, and the wheel that is built of nothing but what is in it."""
    source = folder / "source"  # setuptools leaves folders beside what it builds
    for name in ("effcompress", "plugins", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PACKED:
        shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, check=True, capture_output=True
    )
    (archive,) = folder.glob("effcompress-*.tar.gz")
    with tarfile.open(archive) as stream:
        stream.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(unpacked)], check=True)
    (wheel,) = folder.glob("effcompress-*.whl")
    return archive, wheel


def test_a_wheel_brings_the_methods(tmp_path: Path) -> None:
    """Built of the source archive, installed into an environment that has only the dependencies,
    and used from a folder that knows nothing of this one.
    """
    archive, wheel = archives(tmp_path)
    version = effcompress.__version__
    assert wheel.name == f"effcompress-{version}-py3-none-any.whl"
    with tarfile.open(archive) as stream:
        inside = {name.partition("/")[2] for name in stream.getnames()}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {*PACKED, *recipes} <= inside
    with zipfile.ZipFile(wheel) as stream:
        shipped = {name for name in stream.namelist() if ".dist-info/" not in name}
        facts = f"effcompress-{version}.dist-info"
        entries = stream.read(f"{facts}/entry_points.txt").decode()
        metadata = stream.read(f"{facts}/METADATA").decode()
        assert f"{facts}/licenses/LICENSE" in stream.namelist()
    # Templates, drafts and py.typed among them, and nothing else: no tests, no caches.
    assert shipped == of_package("effcompress") | of_package("effcompress_plugins")
    assert {"effcompress/py.typed", "effcompress_plugins/templates/criterion.py.jinja"} <= shipped
    assert "effcompress = effcompress.cli:main" in entries
    for path in PLUGINS:
        assert f"{path.stem} = effcompress_plugins.{path.stem}" in entries
    assert f"\nVersion: {version}\n" in metadata and "Requires-Python: >=3.11" in metadata

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
    unpacked, empty = tmp_path / "wheel", tmp_path / "empty"  # not installed, just unpacked
    empty.mkdir()
    with zipfile.ZipFile(wheel) as stream:
        stream.extractall(unpacked)
    words = [[sys.executable, "-m", "effcompress"], ["check", str(work / "recipe.yaml")]]
    words += [["new", "criterion", "mine"], ["init", "--help"]]
    for given in words[1:]:
        done = subprocess.run(
            [*words[0], *given],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(unpacked)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert {path.name for path in empty.iterdir()} == {"mine.py", "test_mine.py"}
    where = [sys.executable, "-m", "effcompress", "plugins", "show", "criterion/flap", "--json"]
    shown = subprocess.run(
        where,
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert "installed/effcompress_plugins/flap.py" in shown.stdout, shown.stderr


def test_one_version_everywhere() -> None:
    """In the package, its metadata, the citation and the changelog, whose first entry it is."""
    version = PROJECT["project"]["version"]
    assert effcompress.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    entries = re.findall(r"(?m)^## \[([^]]+)\]", (ROOT / "CHANGELOG.md").read_text())
    assert entries[0] == version
