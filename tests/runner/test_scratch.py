"""The found shape, trained from scratch: every form of an exported folder, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from effcompress.cli import main
from effcompress.errors import SourceError
from effcompress.export.forms import NAMES, Name, form
from effcompress.model.load import load
from effcompress.model.scratch import RECORD
from effcompress.network.axis_map import resolve_model
from effcompress.network.pruned_model import PrunedModel
from effcompress.recipe import load as load_recipe
from effcompress.runner.run import run
from effcompress.spec import ModelSpec
from tests.export.test_forms import cut, write
from tests.runner.toys import events, recipe

PARENT_EPSILON = {"llama": 1e-6, "gemma2": 1e-6, "phi3": 1e-5}


def exported(model_type: str, name: Name, folder: Path) -> PrunedModel:
    pruned = cut(model_type, "both", name)
    folder.mkdir()
    write(pruned, form(pruned, name), folder)
    return pruned


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("name", NAMES)
def test_the_found_shape_is_initialised_anew_and_trains(
    model_type: str, name: Name, tmp_path: Path
) -> None:
    pruned = exported(model_type, name, tmp_path / "run")
    assert any(norm.epsilon != PARENT_EPSILON[model_type] for norm in pruned.norms()), (
        "nothing was repaired"
    )
    loaded = load(ModelSpec(folder=tmp_path / "run", random=True), seed=3)
    module, config = loaded.module, loaded.config
    assert sum(p.numel() for p in module.parameters()) == pruned.params
    assert resolve_model(config).axes.count() == pruned.params, "priced as it is"
    again = PrunedModel(module, config)
    shapes = {n: p.shape for n, p in again.parameters().items()}
    assert shapes == {n: p.shape for n, p in pruned.parameters().items()}
    assert {norm.epsilon for norm in again.norms()} == {PARENT_EPSILON[model_type]}
    assert all((norm.gain + norm.offset == 1).all() for norm in again.norms())
    for parameter in module.parameters():
        if parameter.dim() > 1:
            assert parameter.ne(0).any(dim=0).all(), "no zeros of the padding"
    ids = torch.randint(0, 258, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: Name, tmp_path: Path) -> None:
    exported("llama", name, tmp_path / "run")
    spec = ModelSpec(folder=tmp_path / "run", random=True)
    one, again, other = (load(spec, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not all(torch.equal(one[n], other[n]) for n in one)


def test_a_padded_folder_that_lost_its_record_is_refused(tmp_path: Path) -> None:
    exported("llama", "padded", tmp_path / "run")
    (tmp_path / "run" / RECORD).unlink()
    with pytest.raises(SourceError, match=r"zeros.*come alive(.*\n)*.*--as exact"):
        load(ModelSpec(folder=tmp_path / "run", random=True))
    exported("llama", "uniform", tmp_path / "plain")
    (tmp_path / "plain" / RECORD).unlink()
    load(ModelSpec(folder=tmp_path / "plain", random=True))


@pytest.mark.parametrize("name", ["padded", "exact"])
def test_recorded_shapes_cannot_be_scaled(name: Name, tmp_path: Path) -> None:
    exported("llama", name, tmp_path / "run")
    spec = ModelSpec(folder=tmp_path / "run", random=True, shape={"intermediate_size": 16})
    with pytest.raises(SourceError, match=r"intermediate_size.*cannot scale(.*\n)*.*remove"):
        load(spec)


def said(*words: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(caught.value.code or 0)


def from_scratch(folder: Path, source: Path, more: str = "") -> Path:
    path = recipe(folder, tokens=256)
    text = path.read_text()
    head, tail = text[: text.index("model:")], text[text.index("data:") :]
    tail = tail[: tail.index("prune:")] + tail[tail.index("train:") :]
    path.write_text(f"{head}model: {{folder: {source}, random: true{more}}}\n{tail}")
    return path


def test_a_run_from_scratch_in_the_shape_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    schedule = "{name: continuous, every: 1, start: 256, groups: 2}"
    run(load_recipe(recipe(tmp_path, scope="per_layer", schedule=schedule)), output=found)
    path = from_scratch(tmp_path, found)
    params = events(found, "end")[0]["params"]
    assert said("check", path) == 0
    assert f"{params:,} parameters" in capsys.readouterr().out
    assert said("plan", path, "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["params"] == params and planned["model"].startswith("random weights, shape of")
    again = run(load_recipe(path), output=tmp_path / "again")
    (begun,) = events(again.folder, "run")
    assert begun["params"] == again.params == params
    assert begun["model"] == f"random weights, shape of {found}, seed 0"


def test_what_check_says_of_a_shape_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("llama", "padded", tmp_path / "run")
    path = from_scratch(tmp_path, tmp_path / "run", ", shape: {intermediate_size: 16}")
    assert said("check", path) == 2
    error = capsys.readouterr().err
    assert "model.shape.intermediate_size" in error and "remove `intermediate_size`" in error
