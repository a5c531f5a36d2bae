"""Whatever `check` lets through can be exported in every form that it does not warn of, over random
architectures, spaces, scopes and targets; a form that it refuses cannot be had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from effcompress import load_recipe, run
from effcompress.commands.export import export
from effcompress.errors import EffcompressError, RecipeError, RunError
from effcompress.estimate.check import check
from effcompress.export.forms import NAMES
from tests.conftest import MIXTURES, PLAIN, examples, shape, stated
from tests.contract.test_properties import configs
from tests.runner.toys import texts

MOE = tuple(MIXTURES)
LATE = "the run then fails behind its last checkpoint"
WIDTHS = ("ffn", "attention", "hidden", "expert")
DEPTHS = ("layer", "attention_block", "mlp_block")


def tree(config: dict[str, Any], prune: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "offered",
        "model": {"random": True, "tokenizer": "bytes", "shape": stated(config)},
        "data": {"domains": {"a": {"jsonl": "letters.jsonl", "holdout": 0.3}}}
        | {"sequence_length": 16},
        "prune": {
            "criterion": "random",
            "measure": {"source": "calibration", "sequences": 1},
            "schedule": {"name": "once", "at": 0},
            **prune,
        },
        "evaluate": {"sequences": 1, "new_tokens": 2, "prompt": "a"},
    }


@st.composite
def spaces(draw: st.DrawFn, model_type: str) -> list[dict[str, Any]]:
    there = [name for name in (*WIDTHS, *DEPTHS) if name != "expert" or model_type in MOE]
    names = draw(st.lists(st.sampled_from(there), min_size=1, max_size=3, unique=True))
    found = []
    for name in names:
        one: dict[str, Any] = {"name": name}
        if name in ("ffn", "attention", "expert"):
            one["scope"] = draw(st.sampled_from(["lockstep", "per_layer", "global"]))
            if draw(st.integers(0, 4)) == 0:
                one["skip_layers"] = [0]
        if name == "attention" and model_type not in PLAIN:
            one["unit"] = draw(st.sampled_from(["kv_group", "q_per_group"]))
        if name in ("ffn", "hidden"):
            one["round_to"] = draw(st.sampled_from([1, 1, 2, 8]))
        found.append(one)
    return found


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    config = {**draw(configs()), "vocab_size": 258}
    if config["model_type"] == "llama":
        config["attention_bias"] = draw(st.booleans())
    for field in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        if config["model_type"] in MOE and field in config:  # rows that kernels take
            config[field] = -(-config[field] // 8) * 8
    if draw(st.booleans()):  # as real ones: heads that fill the stream, kernels of eights
        config = shape("gqa_tied", model_type=config["model_type"], vocab_size=258)
    space = draw(spaces(config["model_type"]))
    target: dict[str, Any] = {"keep": draw(st.floats(0.5, 0.99))}
    kinds = {one["name"]: one for one in space}
    if kinds.keys() <= {"hidden", "layer"} and draw(st.booleans()):
        most = {"hidden": config.get("hidden_size", config.get("n_embd")), "layer": 2}
        target = {"shape": {kind: draw(st.integers(1, most[kind])) for kind in kinds}}
    return tree(config, {"space": space, "target": target})


def offered(path: Path, form: str) -> bool | None:
    """What `check` says of a form: True, False (refused), or None (a warning that it may fail)."""
    try:
        lines = check(load_recipe(path, [f"export.form={form}"])).lines
    except RecipeError as error:
        assert error.what.startswith(f"export.form: {form} "), error
        return None if "may differ" in error.what else False
    return None if any(LATE in line for line in lines) else True


def reachable(recipe: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The recipe, with the nearest size as its target where `check` names that; None where it
    refuses the recipe for another reason.
    """
    for _ in range(2):
        path.write_text(json.dumps(recipe))
        try:
            check(load_recipe(path))
        except EffcompressError as error:
            sizes = re.findall(r"(?:at least|sizes are) ([\d,]+)", error.fix or "")
            if not sizes:
                event(f"refused: {error.what}")
                return None
            target = {"params": int(sizes[0].replace(",", ""))}
            recipe = {**recipe, "prune": {**recipe["prune"], "target": target}}
        else:
            return recipe
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("offered")
    texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFCOMPRESS_CACHE", str(folder / "cache"))
        yield folder


def exports_as_said(recipe: dict[str, Any], folder: Path) -> dict[str, bool | None]:
    """Runs a recipe that `check` accepts, and holds every form to what `check` said of it."""
    number = sum(1 for _ in folder.glob("run-*"))
    path, out = folder / "recipe.yaml", folder / f"run-{number}"
    path.write_text(json.dumps(recipe))
    said = {form: offered(path, form) for form in NAMES}
    done = run(load_recipe(path), output=out)
    assert done.folder == out
    for form, possible in said.items():
        target = folder / f"export-{number}-{form}"
        if possible:
            export(out, form, output=target)
        elif possible is False:
            with pytest.raises(RunError):
                export(out, form, output=target)
    return said


@settings(examples(24), suppress_health_check=list(HealthCheck))
@given(recipe=recipes())
def test_what_check_lets_through_exports_in_every_form_it_offers(
    recipe: dict[str, Any], folder: Path
) -> None:
    meant = reachable(recipe, folder / "recipe.yaml")
    if meant is None:
        return
    said = exports_as_said(meant, folder)
    event(" ".join(f"{form}: {possible}" for form, possible in said.items()))
    assert said["exact"]


def cut(model_type: str, more: dict[str, Any], space: dict[str, Any], **target: Any) -> Any:
    """A recipe for a small model that cuts one space."""
    config = shape("gqa_tied", model_type=model_type, vocab_size=258, **more)
    return tree(config, {"space": [space], "target": target})


FREE, LOCKSTEP = {"scope": "per_layer"}, {"scope": "lockstep"}
CASES: dict[str, tuple[Any, tuple[bool | None, bool | None]]] = {
    # Each with what is said of `uniform` and `padded`.
    "experts, layer by layer": (
        cut("mixtral", {}, {"name": "expert", **FREE}, keep=0.8),
        (None, None),
    ),
    "experts in lockstep": (
        cut("mixtral", {}, {"name": "expert", **LOCKSTEP}, keep=0.8),
        (True, True),
    ),
    "experts of some layers": (
        cut("mixtral", {}, {"name": "expert", **LOCKSTEP, "skip_layers": [0]}, shape={"expert": 4}),
        (False, False),
    ),
    "a LayerNorm's channels": (
        cut("gpt2", {}, {"name": "hidden"}, shape={"hidden": 45}),
        (False, False),
    ),
    "a LayerNorm's channels, of size unknown": (
        cut("opt", {}, {"name": "hidden"}, keep=0.8),
        (None, None),
    ),
    "no multiple of the heads": (
        cut("gemma2", {}, {"name": "hidden"}, shape={"hidden": 45}),
        (False, True),
    ),
    "no multiple of eight": (
        cut("mixtral", {}, {"name": "hidden"}, shape={"hidden": 45}),
        (False, True),
    ),
    "biases, which Mistral has not": (
        cut("llama", {"attention_bias": True}, {"name": "hidden"}, shape={"hidden": 45}),
        (False, True),
    ),
    "no multiple of the heads, in Mistral's class": (
        cut("llama", {}, {"name": "hidden"}, shape={"hidden": 45}),
        (True, True),
    ),
    "channels of some layers": (
        cut("llama", {}, {"name": "ffn", "skip_layers": [0]}, shape={"ffn": 20}),
        (False, True),
    ),
    # 28 channels of an expert: no kernel takes them, and shared experts, which stay, are as wide.
    "channels beside experts that cannot grow": (
        cut("glm4_moe", {}, {"name": "hidden"}, shape={"hidden": 45}),
        (False, False),
    ),
    "channels beside experts that cannot grow, of size unknown": (
        cut("glm4_moe", {}, {"name": "hidden"}, keep=0.8),
        (None, None),
    ),
    "all layers alike": (
        cut("llama", {}, {"name": "ffn", **FREE}, shape={"ffn": 20}),
        (True, True),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_forms_are_refused_where_it_is_known(case: str, folder: Path) -> None:
    recipe, (uniform, padded) = CASES[case]
    meant = reachable(recipe, folder / "recipe.yaml")
    assert meant is not None
    said = exports_as_said(meant, folder)
    assert said == {"uniform": uniform, "padded": padded, "exact": True}
