"""What `check` says of stock classes of architectures that are traced or declared by a plugin: they
are tried without weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import load_recipe
from effcompress.errors import RecipeError
from effcompress.estimate.inspect import template_of
from effcompress.groups.tracing import trace
from effcompress.model import families
from effcompress.model.modeling_pruned import silent
from effcompress.model.small import build
from effcompress.network import axis_map
from effcompress.runner.preflight import preflight
from tests.groups.test_traced_families import COMMON
from tests.runner.toys import texts

ARCEE = {"model_type": "arcee", **COMMON}
"""Its class wants a hidden size that is a multiple of the heads."""
SHAPE = {"hidden": 45}
REFUSED = r"export.form: uniform cannot hold the result: no stock class .*is not a multiple of the"


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as a folder, of an architecture that is not declared; tracing runs here."""
    folder = tmp_path_factory.mktemp("arcee")

    def report(question: Mapping[str, Any], *_: Any) -> trace.Report:
        said: trace.Report = {}
        with torch.random.fork_rng():
            trace.answer(question, build, silent, said.update)
        return said

    others = [f for f in families.FAMILIES if "arcee" not in f.model_types]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "FAMILIES", tuple(others))
        patch.setattr(trace, "_report", report)
        torch.set_num_threads(1)
        model: Any = build(ARCEE, "given")
        model.save_pretrained(folder / "model")
        texts(folder)
        (folder / "mine.py").write_text(template_of(folder / "model"))
        yield folder
    axis_map._traced.cache_clear()


def lines(folder: Path, form: str, target: dict[str, Any], **more: Any) -> list[str]:
    """What `check` prints of a recipe that cuts hidden channels, as far as it concerns exports."""
    recipe = {
        "name": "toy",
        "model": {"folder": "model", "tokenizer": "bytes"},
        "data": {"domains": {"a": {"jsonl": "letters.jsonl", "holdout": 0.3}}}
        | {"sequence_length": 16},
        "prune": {
            "criterion": "random",
            "measure": {"source": "calibration", "sequences": 1},
            "schedule": {"name": "once", "at": 0},
            "space": ["hidden"],
            "target": target,
        },
        "evaluate": {"sequences": 1, "new_tokens": 2},
        "export": {"form": form},
        **more,
    }
    (folder / "toy.yaml").write_text(json.dumps(recipe))
    said = preflight(load_recipe(folder / "toy.yaml"), offline=False).lines
    return [line for line in said if line.startswith("export:")]


def test_a_size_that_the_class_refuses_is_named_with_its_reason(folder: Path) -> None:
    with pytest.raises(RecipeError, match=REFUSED) as caught:
        lines(folder, "uniform", {"shape": SHAPE})
    assert "\n" not in caught.value.what and "exact" in str(caught.value.fix)


def test_zeros_up_to_the_parent_make_it_fit(folder: Path) -> None:
    assert lines(folder, "padded", {"shape": SHAPE}) == []
    assert lines(folder, "exact", {"shape": SHAPE}) == []
    assert lines(folder, "uniform", {"shape": {"hidden": 42}}) == []


def test_a_size_not_known_yet_is_warned_of(folder: Path) -> None:
    (said,) = lines(folder, "uniform", {"keep": 0.9})
    assert "does not take every size of hidden" in said and "--as exact" in said


def test_a_family_of_a_plugin_is_tried_as_well(folder: Path) -> None:
    with pytest.raises(RecipeError, match=REFUSED):
        lines(folder, "uniform", {"shape": SHAPE}, plugins=["mine.py"])
