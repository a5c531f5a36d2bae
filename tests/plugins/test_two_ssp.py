"""2SSP: by hand, and a toy run against both stages computed in fp64 beside it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from effcompress import fault, load_recipe, run
from effcompress.distributed.world import ALONE
from effcompress.errors import RecipeError
from effcompress.estimate.feasibility import require_reachable
from effcompress.network.pruned_model import PrunedModel
from effcompress.record.log import Log, NoView
from effcompress.registry import REGISTRY, Bound
from effcompress.runner import run as story
from effcompress.runner.measuring import loss_increases
from effcompress.types import Due
from tests import warm
from tests.conftest import FAMILIES, tiny
from tests.distributed import worker
from tests.runner.test_baselines import FFN, LAYERS, RECIPE, kept, reading, write_model
from tests.runner.toys import events, plans, texts

CHANGES = {
    "space": "[ffn, attention_block]",
    "target": "shape: {ffn: 27, attention_block: 2}",
    "criterion": "two_ssp",
    "more": "selector: width_first",
}


def staged(monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy recipe of the baselines with 2SSP's schedule."""
    text = RECIPE.replace("{{name: once, at: 0}}", "two_stages")
    text = text.replace("sequences: 5", "sequences: 5, ablation_sequences: 3")
    monkeypatch.setattr("tests.runner.test_baselines.RECIPE", text)
    return text


def plugin(kind: str, name: str, **knobs: Any) -> Bound:
    return Bound(REGISTRY.get(kind, name), knobs)


def test_the_norm_is_averaged_over_sequences() -> None:
    norm = plugin("statistic", "sequence_norm")
    first = torch.tensor([[3.0, 1.0, 0.0], [4.0, 2.0, 0.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    state = norm(x=first, state=None)
    assert state[0].tolist() == pytest.approx([5, math.sqrt(5), 0])
    mean = norm(x=second, state=state)[0]
    assert mean.tolist() == pytest.approx([(5 + 1) / 2, math.sqrt(5) / 2, (0 + 2) / 2])


def test_width_goes_first_and_then_what_is_least() -> None:
    select = plugin("selector", "width_first")
    score_K = torch.tensor([-2.0, 0.5, 300.0, 7.0], dtype=torch.float64)
    begun_K = torch.tensor([1.0, 1.0, 40.0, 40.0], dtype=torch.float64)
    order = select(score_K=score_K, begun_K=begun_K).argsort().tolist()
    assert order == [3, 2, 0, 1]


def test_one_step_and_then_one_by_one() -> None:
    def due(params: int, groups_cut: int, first: int | None = None, **left: int) -> Due | None:
        schedule = plugin("schedule", "two_stages", first=first)
        return schedule.due(params=params, target_params=100, groups_cut=groups_cut, left=left)

    assert due(200, 0, ffn=13, attention_block=2) == Due(groups=13, again=True)
    assert due(190, 4, ffn=9, layer=2) == Due(groups=9, again=True)
    assert due(150, 13, ffn=0, mlp_block=2) == Due(groups=1, again=True)
    assert due(120, 14, attention_block=1) == Due(groups=1, again=True)
    assert due(100, 0, ffn=13) is None
    # Fewer channels go where `first` says so; too large a `first` takes no block with them.
    assert due(200, 0, 10, ffn=13, attention_block=2) == Due(groups=10, again=True)
    assert due(200, 0, 10, ffn=4, attention_block=2) == Due(groups=4, again=True)
    assert due(200, 10, 10, ffn=3, attention_block=2) == Due(groups=1, again=True)


def loss_of(model: Any, ids: Tensor) -> float:
    with torch.no_grad():
        logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return -float(logp.gather(-1, ids[:, 1:, None]).mean())


def by_hand(model: Any, ids: Tensor) -> dict[str, list[int]]:
    """Channels of the smallest norm, then the blocks without which the loss is lowest."""
    wanted: dict[str, list[int]] = {}
    with reading(model) as seen, torch.no_grad():
        for row in ids:
            model(input_ids=row[None])
    for i, layer in enumerate(model.model.layers):
        norm = torch.stack([x.norm(dim=0) for x in seen[f"ffn.{i}"]]).mean(0)
        gone = norm.argsort()[: FFN - 27]
        wanted[f"ffn.{i}"] = sorted(gone.tolist())
        layer.mlp.down_proj.weight.data[:, gone] = 0.0
    left = list(range(LAYERS))
    while len(left) > 2:
        losses = {}
        for i in left:
            weight = model.model.layers[i].self_attn.o_proj.weight.data
            before = weight.clone()
            weight.zero_()
            losses[i] = loss_of(model, ids[:3])
            weight.copy_(before)
        best = min(losses, key=lambda i: losses[i])
        model.model.layers[best].self_attn.o_proj.weight.data.zero_()
        wanted[f"attention_block.{best}"] = [0]
        left.remove(best)
    return wanted


def test_both_stages_on_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged(monkeypatch)
    plan, model, ids = kept(tmp_path, **CHANGES)
    assert plan == by_hand(model, ids)
    cuts = [json.loads(x)["plan"] for x in (tmp_path / "run/plans.jsonl").read_text().splitlines()]
    assert [len(cut) for cut in cuts] == [LAYERS, 1, 1]
    assert len(events(tmp_path / "run", "calibration")) == 3


def test_two_processes_take_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    text = staged(monkeypatch)
    texts(tmp_path)
    write_model(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(text.format(**{"repair": "[]", **CHANGES}))
    run(load_recipe(path), output=tmp_path / "one")
    listed = tmp_path / "jobs.json"
    jobs = [{"recipe": path, "output": tmp_path / "two", "set": [], "bare": True}]
    listed.write_text(json.dumps(jobs, default=str))
    code, said = warm.together(worker.main, listed, folder=tmp_path, processes=2)
    assert code == 0, said
    assert plans(tmp_path / "one") == plans(tmp_path / "two")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_loss_is_that_of_a_model_without(model_type: str, tmp_path: Path) -> None:
    """Silenced as cut, in every family; and nothing is left behind."""
    module = tiny(model_type=model_type).eval()
    spaces = [plugin("space", kind) for kind in ("layer", "attention_block", "mlp_block")]
    pruned = PrunedModel(module, module.config.to_dict(), spaces)
    ids = torch.arange(40).view(4, 10) % 61
    before = loss_of(module, ids)
    log = Log(tmp_path, view=NoView())
    how: Any = {"device": torch.device("cpu"), "world": ALONE, "calibrating": "fp32"}
    state: Any = SimpleNamespace(pruned=pruned, to_call=module, **how)
    found = loss_increases(state, ids, None, log)
    log.close()
    assert loss_of(module, ids) == before
    assert found.keys() == {s.name for s in pruned.sets}
    for name in ("layer.0", "attention_block.1", "mlp_block.2"):
        other = PrunedModel(copy.deepcopy(module), module.config.to_dict(), spaces)
        other.mask({name: [0]})
        other.commit()
        assert found[name] == pytest.approx(loss_of(other.module, ids) - before, abs=2e-5), name


def test_it_says_nothing_of_widths(tmp_path: Path) -> None:
    """A criterion of blocks alone ranks no widths."""
    (tmp_path / "mine.py").write_text(
        "from effcompress import criterion\n\n\n"
        '@criterion("without", paper="new")\n'
        'def without(loss_increase):\n    """The rise of the loss."""\n    return loss_increase\n'
    )
    texts(tmp_path)
    write_model(tmp_path)
    path = tmp_path / "toy.yaml"
    given = {"repair": "[]", "more": "", "criterion": "without"}
    shape = "shape: {ffn: 30, layer: 3}"
    path.write_text(
        "plugins: [mine.py]\n" + RECIPE.format(**given, target=shape, space="[ffn, layer]")
    )
    with pytest.raises(RecipeError, match=r"'without' says nothing of 'ffn\.0'"):
        require_reachable(load_recipe(path))
    path.write_text(
        "plugins: [mine.py]\n" + RECIPE.format(**given, target="shape: {layer: 3}", space="[layer]")
    )
    require_reachable(load_recipe(path))


def test_stopped_between_two_blocks_it_takes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = staged(monkeypatch)
    texts(tmp_path)
    write_model(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(text.format(**{"repair": "[]", **CHANGES}))
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    run(load_recipe(path), output=tmp_path / "whole")
    cuts = [0]

    def stop_at_the_second(name: str) -> None:
        cuts[0] += name == "cut"
        if cuts[0] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fault, "point", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run(load_recipe(path), output=tmp_path / "halves")
    run(load_recipe(path), output=tmp_path / "halves", resume=True)
    assert len(plans(tmp_path / "whole")) == 3
    assert plans(tmp_path / "halves") == plans(tmp_path / "whole")
