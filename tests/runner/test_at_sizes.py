"""``export.at``: a model at every size that a run passes, which changes nothing of the run."""

from __future__ import annotations

import gc
import json
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run, train
from effcompress.commands.evaluate import evaluate
from effcompress.commands.export import export
from effcompress.compare.compare import compare
from effcompress.compare.entries import enter
from effcompress.errors import RecipeError, RunError, SourceError
from effcompress.estimate.forecast import plan
from effcompress.record.status import status
from effcompress.runner.state import RunState
from tests import warm
from tests.distributed.test_two_processes import together
from tests.runner.test_resume import log, record, start
from tests.runner.toys import events, plans, recipe, weight_files

AT = "export.at=[21k, 24k]"
MORE = [AT, "export.continued=512"]
ONCE = [
    "prune.measure={source: calibration, sequences: 4}",
    "prune.schedule={name: once, at: 0}",
    "prune.selector=least_salient",
]
SHORT = ["train.tokens=512", "prune.schedule={name: continuous, start: 128, every: 1, groups: 8}"]
PER_LAYER = "{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in weight_files(folder):
        found |= load_file(folder / name) if name.endswith(".safetensors") else {}
    return found


def newest(folder: Path) -> Path:
    return sorted((folder / "checkpoints").glob("step-*"))[-1]


def assert_same_models(one: Path, two: Path) -> None:
    for name in (*weight_files(one), "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def of_steps(folder: Path, kinds: Sequence[str] = ("step", "cut", "commit")) -> list[dict]:
    return [e for e in record(folder) if e["event"] in kinds]


@pytest.mark.parametrize("repair", ["[norm_gain]", "[norm_gain, obs_update]"])
def test_the_run_is_what_it_is_without(tmp_path: Path, repair: str) -> None:
    """Weights, moments, place in the text, random numbers: bit for bit."""
    path, common = recipe(tmp_path), [f"prune.repair={repair}"]
    run(load_recipe(path, common), output=tmp_path / "without")
    run(load_recipe(path, [*common, *MORE]), output=tmp_path / "with")
    one, two = tmp_path / "without", tmp_path / "with"
    assert [e["name"] for e in events(two, "size")] == ["24k", "21k"]
    assert_same_models(one, two)
    assert (one / "plans.jsonl").read_bytes() == (two / "plans.jsonl").read_bytes()
    assert of_steps(one) == of_steps(two)
    held, kept = (load_file(newest(folder) / "tensors.safetensors") for folder in (one, two))
    assert held.keys() == kept.keys() and "rng/cpu" in held
    assert any(name.startswith("optimizer/") for name in held)
    for name, value in held.items():
        assert torch.equal(value, kept[name]), name
    states = [json.loads((newest(folder) / "state.json").read_text()) for folder in (one, two)]
    for key in ("step", "tokens", "stream", "depth", "epsilons", "removed", "selector"):
        assert states[0][key] == states[1][key], key


def test_models_of_the_sizes(tmp_path: Path) -> None:
    """Each is proven, evaluated, of its size, and has the record of the run up to its cut."""
    out = tmp_path / "out"
    run(load_recipe(recipe(tmp_path), [AT]), output=out)
    whole = events(out, "step")
    for size, event in zip((24_000, 21_000), events(out, "size"), strict=True):
        own = out / event["folder"]
        assert own == out / "at" / f"{size // 1000}k" and event["asked"] == size
        assert event["params"] == pytest.approx(size, rel=0.005)
        model = AutoModelForCausalLM.from_pretrained(own)
        assert sum(p.numel() for p in model.parameters()) == event["params"]
        (proof,), (end,), (begun,) = (events(own, kind) for kind in ("proof", "end", "run"))
        assert proof["max_logit_difference"] <= 1e-5 and end["status"] == "success"
        assert begun["target_params"] == size and begun["total_tokens"] == event["tokens"]
        steps = events(own, "step")
        assert steps == whole[: len(steps)] and steps[-1]["tokens"] == event["tokens"]
        assert event["step"] == steps[-1]["step"] and event["continued"] == 0
        # All cuts of the run but the last, which is one of its own.
        cuts = plans(own)
        assert cuts[:-1] == plans(out)[: len(cuts) - 1] and cuts[-1]["step"] == event["step"]
        before, after = events(own, "evaluation")
        found = {name: domain["perplexity"] for name, domain in after["domains"].items()}
        assert event["perplexity"] == found and before["params"] == begun["params"]
        assert not (own / "before").exists()
        assert (own / "README.md").is_file() and (own / "report.html").is_file()
    assert (out / "at" / "24k" / "model.safetensors").read_bytes() != (
        out / "model.safetensors"
    ).read_bytes()


def test_it_trains_on_at_a_rate_that_falls(tmp_path: Path) -> None:
    """From the rate of the run, with its moments, on the text that comes next; nothing is cut."""
    out, spared = tmp_path / "out", tmp_path / "spared"
    sets = ["train.learning_rate={peak: 1e-3, warmup: 0, decay: 0}"]
    path = recipe(tmp_path)
    run(load_recipe(path, [*sets, *MORE]), output=out)
    run(load_recipe(path, [*sets, AT]), output=spared)
    for event in events(out, "size"):
        own = out / event["folder"]
        after = [s for s in events(own, "step") if s["tokens"] > event["tokens"]]
        assert event["continued"] == 512 and len(after) == 512 // 128
        assert [s["learning_rate"] for s in after] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
        assert not [c for c in events(own, "cut") if c["tokens"] > event["tokens"]]
        assert {s["params"] for s in after} == {event["params"]}
        untrained = next(e for e in events(spared, "size") if e["name"] == event["name"])
        assert untrained["params"] == event["params"] and untrained["tokens"] == event["tokens"]
        assert event["perplexity"]["letters"] < untrained["perplexity"]["letters"]


CASES: dict[str, list[str]] = {
    "plain": [*ONCE, "train=null"],
    "propagated": [
        *(*ONCE, "train=null", "prune.criterion=wanda", "prune.measure.propagate=true"),
        "prune.space=[{name: attention}, {name: ffn}]",
    ],
    "lora": [*ONCE, "train=null", "recover={tokens: 512, batch_size: 4, method: lora}"],
    "distilled": [*ONCE, "train=null", "recover={tokens: 512, batch_size: 4, method: distill}"],
    "trained": [*ONCE, "train.tokens=512"],
    "zeros": [*ONCE, "train=null", "sparsify={method: magnitude, sparsity: 50%}"],
    "searched": [*ONCE, "train=null", "prune.search={top: 2, sequences: 2}"],
    "allocated": [
        *(*ONCE[:2], "train=null", "prune.criterion=ziplm", "prune.selector=null"),
        *("prune.repair=[obs_update]", "export.form=exact"),
        f"prune.space=[{PER_LAYER}, attention_block, mlp_block]",
        "prune.allocation={name: dynamic_program, shrink: 0.8}",
    ],
    "sliced": [
        *(*ONCE[:2], "train=null", "prune.criterion=null", "prune.selector=null"),
        *("prune.rotate=slicegpt", "prune.space=[hidden]", "prune.repair=[]"),
    ],
    "observed": [
        *(*ONCE[:2], "train=null", "prune.selector=adaptive", "prune.repair=[]"),
        f"prune.space=[{PER_LAYER}]",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_of_one_cut_a_size_is_the_run_to_that_size(tmp_path: Path, case: str) -> None:
    """Sizes of a run that cuts at once are what runs with these targets leave, bit for bit."""
    path, sets = recipe(tmp_path), CASES[case]
    trained = any("recover=" in s or "train.tokens" in s for s in sets)
    more = ["export.continued=512"] if trained else []
    sizes = [24_000, 21_500] if case == "plain" else [22_000]
    out = tmp_path / "out"
    run(load_recipe(path, [*sets, f"export.at={sizes}", *more]), output=out)
    found = events(out, "size")
    assert [e["asked"] for e in found] == sizes and {e["tokens"] for e in found} == {0}
    for event in found:
        own = tmp_path / event["name"]
        run(load_recipe(path, [*sets, f"prune.target={{params: {event['asked']}}}"]), output=own)
        assert_same_models(own, out / event["folder"])
        kinds = ("calibration", "cut", "search", "step", "sparsify", "rotated", "evaluation")
        assert of_steps(own, kinds) == of_steps(out / event["folder"], kinds)


FAULTS = [
    "save.tensors:1",
    "branch:1",
    "cut:2",
    "save.tensors:2",
    "export:1",
    "size:1",
    "export:1",
    "save.renamed:1",
]
"""Of 24k: the checkpoint that it begins as, behind it, its cut, training and export, when it is
written; then the export of 21k, and the run behind that. Each process counts from 1.
"""


@pytest.mark.timeout(600)
def test_killed_before_during_and_after(tmp_path: Path) -> None:
    """Every size is there once, and bit for bit what it is without a kill."""
    path = recipe(tmp_path)
    more = [word for s in MORE for word in ("--set", s)]
    whole = tmp_path / "whole"
    assert warm.wait(start(path, whole, *more)) == 0, log(whole).read_text()
    killed = tmp_path / "killed"
    for fault in FAULTS:
        again = ["--resume"] if killed.exists() else []
        code = warm.wait(start(path, killed, *more, *again, fault=fault))
        assert code == -signal.SIGKILL, f"{fault} was not reached: {log(killed).read_text()}"
    assert warm.wait(start(path, killed, *more, "--resume")) == 0, log(killed).read_text()
    for place in ("", "at/24k", "at/21k"):
        assert_same_models(whole / place, killed / place)
        assert (whole / place / "plans.jsonl").read_bytes() == (
            killed / place / "plans.jsonl"
        ).read_bytes(), place
        assert record(whole / place) == record(killed / place), place
    names = [sorted(p.name for p in (out / "at").iterdir()) for out in (whole, killed)]
    assert names == [["21k", "24k"]] * 2
    assert not [p for p in killed.rglob(".*") if p.name.startswith((".writing", ".exporting"))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_two_processes(tmp_path: Path, mode: str) -> None:
    """They write what one does, within rounding, and the run is what it is without sizes."""
    path = recipe(tmp_path)
    sets = [f"distributed.mode={mode}"]
    run(load_recipe(path, MORE), output=tmp_path / "one")
    jobs = [
        {"recipe": path, "output": tmp_path / "two", "set": [*sets, *MORE]},
        {"recipe": path, "output": tmp_path / "without", "set": sets},
    ]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    assert_same_models(tmp_path / "two", tmp_path / "without")
    for name in ("24k", "21k"):
        one, two = (tmp_path / out / "at" / name for out in ("one", "two"))
        assert plans(one) == plans(two)
        held, kept = weights(one), weights(two)
        assert held.keys() == kept.keys()
        for key, value in held.items():
            torch.testing.assert_close(value, kept[key], atol=1e-3, rtol=0)
    found = [
        [(e["name"], e["params"]) for e in events(tmp_path / n, "size")] for n in ("one", "two")
    ]
    assert found[0] == found[1] and len(found[0]) == 2


def test_a_size_that_fails_stops_the_run_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    monkeypatch.setenv("EFFCOMPRESS_FAULT", "export:1:disk_full")
    with pytest.raises(RunError, match="at/24k: the model cannot be written"):
        run(load_recipe(path, [AT]), output=out)
    assert events(out / "at/24k", "end")[-1]["status"] == "failed"
    monkeypatch.delenv("EFFCOMPRESS_FAULT")
    run(load_recipe(path, [AT]), output=out, resume=True)
    assert [e["name"] for e in events(out, "size")] == ["24k", "21k"]


def test_the_folder_of_a_size_is_a_run(tmp_path: Path) -> None:
    """Other commands take it as one; its recipe states its own target."""
    path, out = recipe(tmp_path), tmp_path / "out"
    run(load_recipe(path, ["export.at=[24k]", *SHORT]), output=out)
    own = out / "at/24k"
    again = load_recipe(own / "recipe.resolved.yaml").recipe
    assert again.prune is not None and again.prune.target.params == 24_000
    assert again.export.at is None and again.name == "toy-24k"
    state = status(own)
    assert state.state == "finished" and state.target_params == 24_000 and not state.next
    export(own, "exact", output=tmp_path / "exact", offline=True)
    (event,) = events(out, "size")
    found = load_file(tmp_path / "exact" / "model.safetensors")
    assert sum(t.numel() for t in found.values()) == event["params"]
    data: Any = evaluate(own, offline=True).data
    scores = {name: domain["perplexity"] for name, domain in data["domains"].items()}
    assert scores == pytest.approx(event["perplexity"], rel=1e-6)
    entries = enter([own, out], (), (), offline=True)
    assert [entry.label for entry in entries] == ["out-24k", "out"]
    for meant in (out / "at/*", out / "at", out / "at/2?k"):  # as a shell hands it on in quotes
        assert enter([meant, out], (), (), offline=True) == entries
    with pytest.raises(SourceError, match="no run and no recipe is here"):
        enter([out / "at/9*"], (), (), offline=True)

    watch: Any = SimpleNamespace(checking=lambda _: None, begin=lambda *_: None, close=lambda: None)
    page, found = compare([out / "at/*", out], progress=watch, output=tmp_path / "compared")
    rows = {row.full: row for row in found.rows}
    assert [*rows] == ["dense", "out-24k", "out"]
    small, size = rows["out"].values, rows["out-24k"].values
    assert size["params"].mean == event["params"] and small["params"].mean < 24_000
    # Training up to the cut and the cuts are the model's; nobody timed them apart from the run.
    assert size["trained"].mean == event["tokens"] < small["trained"].mean
    assert 0 < size["flops"].mean < small["flops"].mean and size["prune_seconds"].mean > 0
    assert "seconds" not in size and small["seconds"].mean > 0
    said = dict(found.notes)[rows["out-24k"].notes[-1]]
    assert said.startswith("Is a size on the way of a run: its wall time is not measured")
    assert not any("On the way" in note for note in rows["out"].notes)
    assert page.is_file()


def test_plan_counts_what_sizes_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations of the steps of all sizes, and weights and moments of both models while one of
    them trains.
    """
    path, sets = recipe(tmp_path), [*MORE, "prune.commit_every=1", "evaluate.sequences=1"]
    states: weakref.WeakSet[RunState] = weakref.WeakSet()
    begin, update, seen = RunState.__init__, train.update, list[tuple[int, int]]()

    def begun(self: RunState, *given: Any, **how: Any) -> None:
        gc.collect()  # the size before is gone
        begin(self, *given, **how)
        states.add(self)

    def updated(*given: Any, **how: Any) -> float:
        norm = update(*given, **how)
        if len(states) == 2:
            params = [p for state in states for p in state.module.parameters()]
            held = [s.optimizer.state[p] for s in states if s.optimizer for p in s.optimizer.state]
            moments = [t for state in held for t in state.values() if t.dim()]
            seen.append((sum(p.nbytes for p in params), sum(t.nbytes for t in moments)))
        return norm

    monkeypatch.setattr(RunState, "__init__", begun)
    monkeypatch.setattr(train, "update", updated)
    out = tmp_path / "out"
    run(load_recipe(path, sets), output=out)
    said = plan(load_recipe(path, sets)).data
    beside = said["memory_bytes"]["sizes"]
    assert len(seen) == 2 * 4  # 512 tokens each
    for part, held in (("weights", 0), ("moments", 1)):
        peak = max(each[held] for each in seen)
        assert peak <= beside[part] and peak == pytest.approx(beside[part], rel=0.15)
    spent = 0.0
    for size in events(out, "size"):
        steps = events(out / size["folder"], "step")
        spent += sum(step["flops"] for step in steps if step["tokens"] > size["tokens"])
    assert said["flops_of_sizes"] == pytest.approx(spent, rel=0.03)


def test_only_the_run_writes_into_the_folder_of_a_size(tmp_path: Path) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    run(load_recipe(path, ["export.at=[24k]", *SHORT]), output=out)
    own = out / "at/24k"
    with pytest.raises(RecipeError, match="a size of the run above") as caught:
        run(load_recipe(own / "recipe.resolved.yaml"), output=own, resume=True)
    assert f"--output {out} --resume" in str(caught.value)
    (own / "now.json").unlink()
    lines = (own / "metrics.jsonl").read_text().splitlines(keepends=True)
    (own / "metrics.jsonl").write_text("".join(lines[:-1]))  # as if it had died
    assert status(own).next.endswith(f"--output {out} --resume")
