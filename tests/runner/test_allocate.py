"""A width for every block of a toy: which units go, what the model then is, and what was asked,
predicted and measured.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from effcompress import load_recipe, run
from effcompress.errors import PluginError, RecipeError, RunError
from effcompress.estimate.check import check
from effcompress.evaluation.speed import Spread
from effcompress.runner import allocate, latency
from effcompress.runner import run as story
from effcompress.runner.latency import Times
from tests.conftest import shape, stated
from tests.contract.zoo import config_of, sources
from tests.runner.test_baselines import (
    DEFAULTS,
    LAYERS,
    QUERIES,
    RECIPE,
    SEQUENCES,
    WIDE,
    forward,
    kept,
    write_model,
)
from tests.runner.toys import events, texts

SPACE = "[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
BLOCKS = f"{SPACE[:-1]}, attention_block, mlp_block]"
DYNAMIC = "allocation: {name: dynamic_program, shrink: 0.8}"
LOAD = "workload: {batch: 2, length: 16, rounds: 2}"


def at_levels(modules: Any, levels: list[int], *_: Any) -> list[int]:
    """In place of what fills a budget up: comparisons are of levels alone."""
    return [m.widths[k] for m, k in zip(modules, levels, strict=True)]


def chosen_of(folder: Path) -> dict[str, Any]:
    (found,) = events(folder, "allocation")
    return found


def greedy(weight_OI: Tensor, hess_II: Tensor, size: int) -> tuple[list[int], list[float]]:
    """The order in which groups of ``size`` inputs go, and the joint error of every prefix relative
    to that without the layer: least squares of what is left, solved anew for each candidate.
    """

    def error(gone: list[int]) -> float:
        out = [i for g in gone for i in range(g * size, (g + 1) * size)]
        keep = [i for i in range(len(hess_II)) if i not in out]
        change_OI = weight_OI.clone()
        right_KO = (hess_II @ weight_OI.T)[keep]
        change_OI[:, keep] -= torch.linalg.solve(hess_II[keep][:, keep], right_KO).T
        return float(((change_OI @ hess_II) * change_OI).sum())

    groups = range(len(hess_II) // size)
    order: list[int] = []
    errors: list[float] = []
    while len(order) < len(groups):
        tried = {g: error([*order, g]) for g in groups if g not in order}
        order.append(min(tried, key=tried.__getitem__))
        errors.append(tried[order[-1]])
    return order, [e / errors[-1] for e in errors]


def test_what_goes_is_what_second_order_and_the_best_choice_say(tmp_path: Path) -> None:
    """Criterion, levels, program and plan against an independent computation in fp64."""
    more = DYNAMIC.replace("0.8", "0.5")
    how = {"space": SPACE, "criterion": "ziplm", "more": more, "target": "keep: 80%"}
    plan, model, ids = kept(tmp_path, **how, repair="[obs_update]")
    seen = forward(model, ids)
    orders, errors, widths, costs = {}, [], [], []
    for kind, i in itertools.product(("attention", "ffn"), range(LAYERS)):
        layer = model.model.layers[i]
        linear = layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj
        x_TI = torch.cat(seen[f"{kind}.{i}"])
        hess_II = x_TI.T @ x_TI / len(x_TI)
        hess_II += 0.01 * hess_II.diagonal().mean() * torch.eye(len(hess_II))
        size = QUERIES * WIDE if kind == "attention" else 1
        order, each = greedy(linear.weight.detach(), hess_II, size)
        orders[f"{kind}.{i}"] = order
        left = [3, 2, 1] if kind == "attention" else [40, 20, 10, 5, 3, 2, 1]
        assert chosen_of(tmp_path / "run")["widths"].keys() >= {f"{kind}.{i}"}
        widths.append(left)
        errors.append([0.0, *(each[left[0] - w - 1] for w in left[1:])])
        # Parameters: q, k, v and o of a group, or gate, up and down of a channel.
        unit = 24 * WIDE * (2 * QUERIES + 2) if kind == "attention" else 3 * 24
        costs.append([unit * w for w in left])
    asked = round(0.8 * model.num_parameters()) - (
        model.num_parameters() - sum(c[0] for c in costs)
    )
    best = _least(errors, costs, asked)
    found = chosen_of(tmp_path / "run")["widths"]
    for (name, order), left, level in zip(orders.items(), widths, best, strict=True):
        # What a level leaves of the budget is filled, below the next level.
        assert left[level] <= found[name] < ([*left, 99][level - 1] if level else 99)
        assert plan.get(name, []) == sorted(order[: left[0] - found[name]]), name


def _least(errors: list[list[float]], costs: list[list[int]], budget: int) -> list[int]:
    """All choices, by a table of the best ones of every size."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for each, cost in zip(errors, costs, strict=True):
        grown: dict[int, tuple[float, list[int]]] = {}
        for spent, (error, levels) in best.items():
            for k, (e, c) in enumerate(zip(each, cost, strict=True)):
                new = (error + e, [*levels, k])
                if spent + c <= budget and new < grown.get(spent + c, (9e9, [])):
                    grown[spent + c] = new
        best = grown
    return min(best.values())[1]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)


def test_memory_is_that_of_the_files_and_of_the_cache(tmp_path: Path) -> None:
    more = f"{DYNAMIC}\n  {LOAD}"
    how = {"space": BLOCKS, "criterion": "ziplm", "more": more, "target": "memory: 60kB"}
    kept(tmp_path, **how, repair="[obs_update]")
    out = tmp_path / "run"
    tensors = load_file(out / "model.safetensors")
    stored = sum(t.nbytes for t in tensors.values())
    for name, rows in ((n, len(t)) for n, t in tensors.items() if n.endswith("q_proj.weight")):
        assert rows == QUERIES * len(tensors[name.replace("q_proj", "k_proj")])  # whole KV groups
    found = chosen_of(out)
    heads = sum(w for name, w in found["widths"].items() if name.startswith("attention."))
    cache = 2 * heads * WIDE * 2 * 16 * 4  # keys and values, 2 sequences of 16 tokens, fp32
    assert stored + cache == found["predicted"] <= found["asked"] == 60_000
    assert found["predicted"] > 0.98 * 60_000
    assert found["unit"] == "bytes" and not events(out, "latency")
    assert events(out, "end")[-1]["params"] * 4 == stored
    assert events(out, "run")[0]["target_params"] is None


@pytest.mark.parametrize(
    "allocation",
    [
        "allocation: {name: evolution, generations: 2, offspring: 4, survivors: [2, 1]}",
        "allocation: {name: dynamic_program, search: 3, patience: 2, sequences: 2}",
        "allocation: {name: dynamic_program, errors: replaced, replaced_at: 2}",
    ],
    ids=["evolution", "search", "replaced"],
)
def test_whole_models_are_compared(tmp_path: Path, allocation: str, bare: None) -> None:
    """The divergence that is recorded is that of the model that the run leaves."""
    how = {"space": BLOCKS, "criterion": "ziplm", "more": allocation, "target": "keep: 60%"}
    seen: dict[str, Tensor] = {}
    read: list[tuple[Any, int]] = []
    held: list[Any] = []  # so that no other weights get the number of these

    def keep(pruned: Any, _tokenizer: Any, _form: str, ids_BT: Tensor, *_: Any) -> None:
        with torch.no_grad():
            ids = seen["ids"]
            seen["after"] = pruned.module(input_ids=ids).logits.log_softmax(-1)

    class Watched(allocate.WholeModel):
        def _distribution(self, weights: Any, n: int) -> Tensor:
            found = super()._distribution(weights, n)
            assert self._text is not None
            seen["ids"] = self._text[0][: self.sequences]
            read.append((frozenset((k, id(v)) for k, v in weights.items()), n))
            held.append(weights)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "export_and_prove", keep)
        patch.setattr(allocate, "WholeModel", Watched)
        patch.setattr(allocate, "filled", at_levels)
        patch.setattr("effcompress.runner.prune.TOLERANCE", 1.0)
        _, model, _ = kept(tmp_path, **how, repair="[obs_update]")
    found = chosen_of(tmp_path / "run")
    assert found["comparisons"] > 3
    assert len(set(read)) == len(read), "no model reads a sequence twice"
    if "replaced" in allocation:
        assert found["errors"] == "replaced" and found["loss"] is None
        return
    with torch.no_grad():
        before = model(input_ids=seen["ids"]).logits.log_softmax(-1)
    kl = (before.exp() * (before - seen["after"].double())).sum(-1).mean()
    assert found["loss"] == pytest.approx(float(kl), rel=2e-4)


def timed(dense: float, per_unit: float, overhead: float = 0.0) -> Any:
    """Stands for the clock: blocks take so long per unit, and the whole model ``overhead`` more
    than its blocks predict.
    """

    def measure(pruned: Any, widths: Any, load: Any, say: Any, clock: Any = None) -> Any:
        return {k: {w: per_unit * w for w in ws} for k, ws in widths.items()}, dense

    def compared(one: Any, other: Any, load: Any) -> Times:
        def seconds(module: Any) -> float:
            layers = module.model.layers
            gone = 0
            for layer in layers:
                rows = getattr(getattr(layer.self_attn, "k_proj", None), "weight", torch.zeros(0))
                wide = getattr(getattr(layer.mlp, "up_proj", None), "weight", torch.zeros(0))
                gone += 43 - rows.shape[0] // WIDE - wide.shape[0]
            gone += 43 * (LAYERS - len(layers))
            return dense - per_unit * gone + (overhead if gone else 0.0)

        spreads = [Spread(s, s, s) for s in (seconds(one), seconds(other))]
        ratio = spreads[0].median / spreads[1].median
        return Times(*spreads, Spread(ratio, ratio, ratio))

    return measure, compared


def prune_by_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, target: str, clock: Any, **more: str
) -> Path:
    measure, compared = clock
    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(allocate, "compared", compared)
    text = f"{DYNAMIC}\n  {LOAD}"
    how = {"space": BLOCKS, "criterion": "ziplm", "more": text, "target": target}
    kept(folder, **{**how, **more}, repair="[obs_update]")
    return folder / "run"


def test_asked_predicted_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: None
) -> None:
    """0.3 s of which 172 units take 1 ms each; 1.5 times as fast is 0.2 s. One attention block and
    one feed-forward block stay, of one unit each.
    """
    out = prune_by_time(tmp_path, monkeypatch, "speedup: 1.5", timed(0.3, 1e-3))
    (chosen,), (measured,) = events(out, "allocation"), events(out, "latency")
    assert chosen["before"] == pytest.approx(0.3) and chosen["asked"] == pytest.approx(0.2)
    assert chosen["least"] == pytest.approx(0.3 - 0.172 + 0.002)
    assert 0.19 < chosen["predicted"] <= 0.2 * (1 + 1e-9)
    assert measured["measured"] == pytest.approx(chosen["predicted"])
    assert measured["speed_up"] == pytest.approx(0.3 / chosen["predicted"])
    assert not [w for w in events(out, "warning") if "asked" in w["text"]]
    assert chosen["unit"] == "seconds"
    page = (out / "report.html").read_text()
    assert "asked 200 ms" in page
    # The table lies in the cache by now: another run does not measure, and check knows the rest.
    monkeypatch.setattr(latency, "measure", lambda *_: pytest.fail("measured again"))
    loaded = load_recipe(tmp_path / "toy.yaml")
    run(loaded, output=tmp_path / "again")
    assert events(tmp_path / "again", "allocation")[0]["widths"] == chosen["widths"]
    with pytest.raises(RecipeError, match=r"120 ms cannot.*fastest.*130 ms, 2\.31 times") as failed:
        run(
            load_recipe(tmp_path / "toy.yaml", ["prune.target={speedup: 2.5}"]),
            output=tmp_path / "x",
        )
    assert "Name 2.3, or less" in str(failed.value) and not (tmp_path / "x").exists()


def test_blocks_that_promise_too_much_are_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: None
) -> None:
    """The whole model takes 20 ms more than its blocks say: the plugin gets a smaller budget."""
    out = prune_by_time(tmp_path, monkeypatch, "milliseconds: 200", timed(0.3, 1e-3, 0.02))
    (chosen,), (measured,) = events(out, "allocation"), events(out, "latency")
    assert chosen["aimed"] == pytest.approx(0.2 * 0.2 / 0.22, rel=0.01)
    assert chosen["predicted"] <= chosen["aimed"] * (1 + 1e-9) < chosen["asked"]
    assert measured["measured"] == pytest.approx(chosen["predicted"] + 0.02)
    assert abs(measured["measured"] / 0.2 - 1) < 0.05
    assert not [w for w in events(out, "warning") if "asked" in w["text"]]


def test_a_time_that_is_missed_is_said_with_all_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: None
) -> None:
    out = prune_by_time(tmp_path, monkeypatch, "milliseconds: 200", timed(0.3, 1e-3, 0.09))
    (said,) = [w["text"] for w in events(out, "warning") if "asked" in w["text"]]
    (measured,) = events(out, "latency")
    for number in ("asked 200 ms", "predicted", f"{measured['measured'] * 1e3:.4g} ms"):
        assert number in said


def test_what_cannot_be_reached_is_refused_before_anything_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: None
) -> None:
    with pytest.raises(RunError, match=r"100 ms cannot be reached.*130 ms, 2\.31 times") as failed:
        prune_by_time(tmp_path, monkeypatch, "milliseconds: 100", timed(0.3, 1e-3))
    assert "Name 130, or more" in str(failed.value)
    assert not events(tmp_path / "run", "calibration") and not events(tmp_path / "run", "cut")


def test_a_time_that_the_source_model_takes_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: None
) -> None:
    with pytest.raises(RunError, match="400 ms, and the source model takes 300 ms as it is"):
        prune_by_time(tmp_path, monkeypatch, "milliseconds: 400", timed(0.3, 1e-3))
    assert not events(tmp_path / "run", "calibration")


@pytest.mark.parametrize("minimum", [1, 3])
def test_as_many_blocks_stay_as_the_space_says(tmp_path: Path, minimum: int, bare: None) -> None:
    """At the least memory that there is, which `check` knows; of every kind one block at least."""
    space = BLOCKS.replace("attention_block", f"{{name: attention_block, minimum: {minimum}}}")
    how = {"space": space, "criterion": "ziplm", "more": f"{DYNAMIC}\n  {LOAD}"}
    with pytest.raises(RecipeError, match="always remain") as failed:
        kept(tmp_path, **how, target="memory: 20kB")
    (least,) = re.findall(r"Name ([\d.]+ kB), or more", str(failed.value))
    kept(tmp_path, **how, target=f"memory: {least.replace(' ', '')}")
    widths = chosen_of(tmp_path / "run")["widths"]
    for kind, stay in (("attention", minimum), ("ffn", 1)):
        left = [w for name, w in widths.items() if name.startswith(f"{kind}.")]
        assert sum(w > 0 for w in left) == stay and max(left) == 1, kind
    assert events(tmp_path / "run", "end")[0]["status"] == "success"


def test_sizes_between_two_numbers_of_heads_are_refused(tmp_path: Path, bare: None) -> None:
    """A KV head is 2.3 % of this model; the fix's size can be had, and check names no tokens."""
    how = {"space": f"{SPACE.partition('},')[0]}}}]", "criterion": "ziplm", "more": DYNAMIC}
    with pytest.raises(RecipeError, match="23,846 parameters lie between two sizes") as failed:
        kept(tmp_path, **how, target="params: 23846")
    assert "The nearest sizes are 23,688 and 24,264" in str(failed.value)
    kept(tmp_path, **how, target="params: 23688")
    assert events(tmp_path / "run", "end")[0]["params"] == 23_688
    lines = check(load_recipe(tmp_path / "toy.yaml")).lines
    assert "schedule: levels of every block are chosen at once" in lines


def test_memory_that_cannot_be_reached_is_refused_without_loading(tmp_path: Path) -> None:
    more = f"{DYNAMIC}\n  {LOAD}"
    how = {"space": SPACE, "criterion": "ziplm", "more": more, "target": "memory: 30kB"}
    with pytest.raises(RecipeError, match=r"30\.0 kB cannot be reached; .* kB always remain"):
        kept(tmp_path, **how, repair="[obs_update]")
    assert not (tmp_path / "run").exists()


PLUGIN = """\
from effcompress import allocation

@allocation("own")
def own(error_ML, cost_ML, budget):
    return {answer}
"""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[0] * len(cost_ML)", "cost 24,840 parameters, where 18,630"),
        ("[0]", "returned [0] for 8 modules"),
        ("[99] * len(cost_ML)", "a level that a module does not have"),
        ("[len(c) - 1.0 for c in cost_ML]", "for 8 modules"),
    ],
)
def test_a_plugin_is_held_to_its_contract(
    tmp_path: Path, bare: None, answer: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(PLUGIN.format(answer=answer))
    how = {
        "space": SPACE,
        "criterion": "magnitude",
        "more": "allocation: own",
        "target": "keep: 75%",
    }
    with pytest.raises(PluginError) as failed:
        kept(tmp_path, **{**how, "repair": "[]\nplugins: [own.py]"})
    assert said in str(failed.value) and "own.py" in str(failed.value)


def test_a_run_that_was_stopped_keeps_its_choice(tmp_path: Path, bare: None) -> None:
    """The cut lies before the first step; what was chosen is in the checkpoint and the record."""
    texts(tmp_path)
    write_model(tmp_path)
    more = "allocation: {name: evolution, generations: 1, offspring: 3, survivors: [1]}"
    how = {"space": BLOCKS, "criterion": "ziplm", "more": more, "target": "keep: 60%"}
    text = RECIPE.format(**{**DEFAULTS, **how, "repair": "[obs_update]"})
    text += "recover: {tokens: 480, batch_size: 4}\nsave: {every: 2}\n"
    (tmp_path / "toy.yaml").write_text(text)
    loaded = load_recipe(tmp_path / "toy.yaml")
    run(loaded, output=tmp_path / "whole")

    original, steps = story.train_step, itertools.count()

    def counted(*args: Any, **named: Any) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return original(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "train_step", counted)
        with pytest.raises(KeyboardInterrupt):
            run(loaded, output=tmp_path / "halves")
    run(loaded, output=tmp_path / "halves", resume=True)
    for kind in ("allocation", "cut"):
        one, two = (
            [{k: v for k, v in e.items() if k not in ("seconds", "memory_bytes")} for e in found]
            for found in (events(tmp_path / n, kind) for n in ("whole", "halves"))
        )
        assert one == two and len(one) == 1
    ends = [events(tmp_path / n, "end")[-1] for n in ("whole", "halves")]
    assert ends[0]["widths"] == ends[1]["widths"] and ends[0]["params"] == ends[1]["params"]
    assert json.loads((tmp_path / "halves" / "plans.jsonl").read_text().splitlines()[0])["plan"]


@pytest.mark.parametrize(
    ("family", "criterion"),
    [
        *(("gpt2", "ziplm"), ("gpt_neox", "ziplm")),
        *(("codegen", "ziplm"), ("gemma4_text", "magnitude")),
    ],
)
def test_compared_models_of_other_families_are_what_is_cut(
    tmp_path: Path, family: str, criterion: str
) -> None:
    """Weights stored the other way round, biases behind the projections, fused heads, heads that
    lie in several stretches of what a layer reads, and those that several layers attend to.
    """
    seen: dict[str, Tensor] = {}

    def keep(pruned: Any, *_: Any) -> None:
        with torch.no_grad():
            seen["after"] = pruned.module(input_ids=seen["ids"]).logits.log_softmax(-1)

    class Watched(allocate.WholeModel):
        def _distribution(self, weights: Any, n: int) -> Tensor:
            found = super()._distribution(weights, n)
            assert self._text is not None
            seen["ids"] = self._text[0][: self.sequences]
            if not weights:
                seen[f"before {n}"] = found
            return found

    made = config_of(family) if family in sources() else shape("mha_tied", model_type=family)
    fields = {k: v for k, v in stated(made).items() if "_id" not in k or v is None}
    fields |= {"vocab_size": 258, "initializer_range": 0.3}
    texts(tmp_path)
    more = "allocation: {name: evolution, generations: 1, offspring: 3, survivors: [1]}"
    how = {"space": BLOCKS, "criterion": criterion, "more": more, "target": "keep: 80%"}
    text = RECIPE.format(**{**DEFAULTS, **how, "repair": "[obs_update]"})
    model = f"model: {{random: true, shape: {json.dumps(fields)}, tokenizer: bytes}}"
    text = text.replace("model: {folder: model, tokenizer: bytes}", model)
    (tmp_path / "toy.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story, "export_and_prove", keep)
        patch.setattr(allocate, "WholeModel", Watched)
        patch.setattr(allocate, "filled", at_levels)
        patch.setattr("effcompress.runner.prune.TOLERANCE", 1.0)
        run(load_recipe(tmp_path / "toy.yaml"), output=tmp_path / "run")
    before = torch.stack([seen[f"before {n}"] for n in range(SEQUENCES)]).double()
    kl = (before.exp() * (before - seen["after"].double())).sum(-1).mean()
    found = chosen_of(tmp_path / "run")["loss"]
    assert found > 1e-4 and found == pytest.approx(float(kl), rel=1e-3)
