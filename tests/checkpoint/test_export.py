"""A model folder is whole, or it does not load as a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import fault
from effcompress.checkpoint import Written
from effcompress.commands.export import _require_free
from effcompress.errors import RunError, SourceError
from effcompress.export.weights import Weights, unchanged
from effcompress.export.write import save
from tests.conftest import shape, tiny


def export_to(folder: Path, **changes: object) -> Written:
    """The tiny model, or with ``changes`` one of other sizes, as a folder."""
    config = AutoConfig.for_model(**shape("gqa_tied", **changes))
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    return save(skeleton, held(**changes), lambda work: None, folder, {"note.txt": "x"})


def held(**changes: object) -> Weights:
    """The tensors of the tiny model."""
    named = tiny("gqa_tied", **changes).named_parameters()
    return Weights({name: unchanged(p) for name, p in named})


def files(folder: Path) -> int:
    return len([f for f in folder.iterdir() if f.is_file()])


def test_a_folder_that_dies_half_way_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an old model, wherever it stops: config.json is there only with all of the new files."""
    export_to(tmp_path / "whole", intermediate_size=44)
    moved = files(tmp_path / "whole")
    for stops in range(moved):
        folder = tmp_path / str(stops)
        export_to(folder)
        assert (folder / "config.json").is_file()
        seen: list[str] = []

        def dies(name: str, seen: list[str] = seen, stops: int = stops) -> None:
            if name != "export":  # before: the old model is as it was
                return
            if len(seen) == stops:
                raise OSError("the power fails")
            seen.append(name)

        with monkeypatch.context() as patch, pytest.raises(RunError, match="the power fails"):
            patch.setattr(fault, "point", dies)
            export_to(folder, intermediate_size=44)
        assert not (folder / "config.json").exists(), stops
        assert not list(folder.glob(".exporting-*"))
    export_to(tmp_path / "0", intermediate_size=44)
    assert json.loads((tmp_path / "0/config.json").read_text())["intermediate_size"] == 44


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_names_and_shapes_must_be_those_of_the_class(tmp_path: Path, change: str) -> None:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape("gqa_tied")))
    weights, name = held(), "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights.made[name]
    elif change == "unknown":
        weights.made["other"] = unchanged(torch.zeros(3))
    else:
        weights.made[name] = unchanged(weights[name][:-1])
    with pytest.raises(RunError, match="does not fit the exported class"):
        save(skeleton, weights, lambda work: None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_export_left_is_no_reason_to_refuse_the_next(tmp_path: Path) -> None:
    gone, alive = tmp_path / f".exporting-{2**22 + 1}", tmp_path / f".exporting-{os.getppid()}"
    gone.mkdir()
    _require_free(tmp_path)
    assert not gone.exists()
    alive.mkdir()
    with pytest.raises(SourceError, match="exists already"):
        _require_free(tmp_path)
    alive.rmdir()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_other_files_beside_it_are_kept(tmp_path: Path, name: str) -> None:
    """An export deletes weights that are in its way, so it takes no folder that holds any."""
    (tmp_path / f".exporting-{2**22 + 1}").mkdir()
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match="exists already"):
        _require_free(tmp_path)
    assert (tmp_path / name).exists()
