"""Weights of the domains that follow held-out losses, in whole runs."""

from __future__ import annotations

import csv
import io
import itertools
import json
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from effcompress import fault, load_recipe, run
from effcompress.checkpoint import Proof
from effcompress.data import predicted
from effcompress.errors import PluginError, RecipeError, RunError, SourceError
from effcompress.estimate.check import check
from effcompress.estimate.feasibility import sized_model
from effcompress.estimate.flops import flops_per_token
from effcompress.estimate.forecast import Launch, plan
from effcompress.estimate.schedule import measurements, steps_at
from effcompress.model.load import load as load_model
from effcompress.record.events import typed
from effcompress.record.panel import LiveView, Status
from effcompress.registry import Bound, Registry
from effcompress.report.comparison import facts
from effcompress.runner import mixture as room
from effcompress.runner.evaluation import scores
from effcompress.runner.mixture import reweighed
from effcompress.runner.preflight import preflight
from effcompress.runner.start import corpus_of
from effcompress.runner.state import RunState
from effcompress.spec import EvaluateSpec
from effcompress.track.curves import curves
from effcompress.train import Losses
from tests import warm
from tests.distributed.test_two_processes import together
from tests.runner.test_gates import SHEARED
from tests.runner.test_resume import log, record, start
from tests.runner.toys import events, recipe

DYNAMIC = "data.mixture={name: dynamic, every: 3, eta: 2, floor: 1%, sequences: 3}"
TRAINING = "data.mixture.losses=training"
GIVEN = "data.mixture.reference={letters: 4.5, numbers: 3.5}"
MODELS = [
    f"{{params: {n}k, losses: {{letters: {2 + n**-0.3}, numbers: {1 + 2 * n**-0.2}}}}}"
    for n in (20, 60, 200)
]
SCALING = f"data.mixture.scaling=[{', '.join(MODELS)}]"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves a process per run; the proof has tests of its own."""
    yes = Proof(0.0, tokens_equal=True, cache_equal=True, seconds=0.0)
    monkeypatch.setattr("effcompress.checkpoint.prove", lambda *_, **__: yes)


def ran(folder: Path, *sets: str, **changes: object) -> Path:
    out = folder / "out"
    run(load_recipe(recipe(folder, **changes), sets), output=out)
    return out


def by_hand(event: dict[str, Any], weights: dict[str, float]) -> dict[str, float]:
    """The update, in numpy."""
    gap = np.array([event["losses"][n] - event["reference"][n] for n in weights])
    raised = np.array([*weights.values()]) * np.exp(2 * gap)
    found = 0.99 * raised / raised.sum() + 0.01 / len(weights)
    return dict(zip(weights, found.tolist(), strict=True))


@pytest.mark.usefixtures("bare")
def test_it_rides_on_pruning_aware_training(tmp_path: Path) -> None:
    """EfficientLLM's loop: measured every three steps, behind the cut, and followed by the text."""
    out = ran(tmp_path, DYNAMIC)
    found = events(out, "mixture")
    assert [e["step"] for e in found] == [0, 3, 6, 9, 12, 15, 18]
    assert [e["tokens"] for e in found] == [128 * e["step"] for e in found]
    (before, after) = events(out, "evaluation")
    source = found[0]["losses"]
    assert all(e["reference"] == source for e in found)
    evaluated = {name: score["loss"] for name, score in before["domains"].items()}
    assert source.keys() == evaluated.keys()
    assert all(source[name] != loss for name, loss in evaluated.items()), "of the same windows"
    assert found[0]["weights"] == pytest.approx({"letters": 1 / 3, "numbers": 2 / 3})
    for earlier, later in itertools.pairwise(found):
        assert later["weights"] == pytest.approx(by_hand(later, earlier["weights"]), rel=1e-12)
        assert later["weights"] != earlier["weights"]
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    order = [e["event"] for e in lines if e.get("step") == 6 and e["event"] in ("cut", "mixture")]
    assert order == ["cut", "mixture"]
    # What was read is the sum of the weights over the samples, to within a sample.
    state = json.loads((max((out / "checkpoints").iterdir()) / "state.json").read_text())
    ends = [*(e["step"] for e in found[1:]), 20]
    spans = [end - e["step"] for e, end in zip(found, ends, strict=True)]
    for name in source:
        due = sum(4 * n * e["weights"][name] for e, n in zip(found, spans, strict=True))
        assert abs(state["stream"]["read"][name] - due) < 1
    assert after["domains"].keys() == source.keys()


@pytest.mark.usefixtures("bare")
def test_losses_are_those_of_the_model_as_it_is(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[dict[str, float], dict[str, float], bool]] = []
    measure = room.heldout_losses

    def both(state: Any, sequences: int) -> dict[str, float]:
        mine = measure(state, sequences)
        dense = scores(state.module, state.corpus, EvaluateSpec(sequences=5), state.world, behind=3)
        seen.append((mine, {n: s.loss for n, s in dense.items()}, state.module.training))
        return mine

    monkeypatch.setattr(room, "heldout_losses", both)
    out = ran(tmp_path, DYNAMIC, "data.mixture.sequences=5")
    assert len(seen) == 7, "at step 0, too: the three windows of the evaluation are others"
    assert all(mine == other for mine, other, _ in seen)
    assert all(training for *_, training in seen[1:]), "training goes on as before"
    assert [e["losses"] for e in events(out, "mixture")] == [mine for mine, *_ in seen]


@pytest.mark.usefixtures("bare")
def test_it_may_follow_the_losses_of_the_training_text(tmp_path: Path, monkeypatch: Any) -> None:
    """Without a pass of its own: the mean over the sequences since the last change, by domain."""
    measured, measure = list[int](), room.heldout_losses

    def counting(state: RunState, sequences: int) -> dict[str, float]:
        measured.append(state.step)
        return measure(state, sequences)

    monkeypatch.setattr(room, "heldout_losses", counting)
    out = ran(tmp_path, DYNAMIC, TRAINING)
    found, steps = events(out, "mixture"), events(out, "step")
    assert measured == [0], "the references alone"
    assert [e["step"] for e in found] == [0, 3, 6, 9, 12, 15, 18]
    state = json.loads((max((out / "checkpoints").iterdir()) / "state.json").read_text())
    assert {name: n for name, (_, n) in state["trained_losses"].items()} == read_since(found, state)
    for earlier, later in itertools.pairwise(found):
        between = [s for s in steps if earlier["step"] < s["step"] <= later["step"]]
        assert len(between) == 3
        for name, loss in later["losses"].items():
            each = [s["domain_loss"][name] for s in between if name in s["domain_loss"]]
            assert min(each) <= loss <= max(each)
        assert later["weights"] == pytest.approx(by_hand(later, earlier["weights"]), rel=1e-12)
    flops = [e["flops"] for e in found]
    assert flops[0] > 0 and not any(flops[1:])


def read_since(found: list[dict[str, Any]], state: dict[str, Any]) -> dict[str, int]:
    """Samples that each domain gave behind the last change, of 4 sequences a step."""
    read, at = state["stream"]["read"], state["stream"]["mixture"]["since"]
    assert sum(read.values()) - sum(at.values()) == 4 * (20 - found[-1]["step"])
    return {name: count - at[name] for name, count in read.items() if count > at[name]}


def test_a_mean_over_sequences_not_over_steps() -> None:
    """A domain without a sequence since the last change has no loss."""
    spec = SimpleNamespace(losses="training")
    state: Any = SimpleNamespace(
        recipe=SimpleNamespace(data=SimpleNamespace(mixture=spec)),
        trained_losses={},
    )
    for domains, losses in (
        (("prose", "prose", "prose", "code"), {"prose": 2.0, "code": 1.0}),
        (("prose", "code", "code", "code"), {"prose": 6.0, "code": 3.0}),
    ):
        batch: Any = SimpleNamespace(domains=domains)
        room.learned(state, batch, Losses(0.0, losses, 0.0))
    found = room._trained_losses(state)
    assert found == {"prose": 3.0, "code": 2.5} and not state.trained_losses


@pytest.mark.usefixtures("bare")
def test_a_domain_that_gave_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    """One sequence a step, and a change behind each: the other domain has no loss."""
    out = ran(tmp_path, DYNAMIC, TRAINING, "data.mixture.every=1", "train.batch_size=1")
    found = events(out, "mixture")
    assert all(len(e["losses"]) == 1 for e in found[1:])
    for earlier, later in itertools.pairwise(found[:9]):
        known = {**later, "losses": {**later["reference"], **later["losses"]}}
        assert later["weights"] == pytest.approx(by_hand(known, earlier["weights"]), rel=1e-12)
    assert (out / "pictures").is_dir()


@pytest.mark.usefixtures("bare")
def test_learned_masks_are_measured_without_noise(tmp_path: Path, monkeypatch: Any) -> None:
    """Under gates while they are learned; before and behind that stage without."""
    seen: list[tuple[int, dict[str, float], dict[str, float], dict[str, float]]] = []
    measure = room.heldout_losses

    def all_three(state: RunState, sequences: int) -> dict[str, float]:
        def losses() -> dict[str, float]:
            spec = EvaluateSpec(sequences=sequences)
            found = scores(state.module, state.corpus, spec, state.world, behind=3)
            return {name: score.loss for name, score in found.items()}

        masked = losses()
        if state.gates is not None:
            with state.gates.deterministic():
                masked = losses()
        seen.append((state.step, measure(state, sequences), masked, losses()))
        return seen[-1][1]

    monkeypatch.setattr(room, "heldout_losses", all_three)
    ran(tmp_path, DYNAMIC, "data.mixture.every=1", *SHEARED)
    assert [step for step, *_ in seen] == list(range(18))
    for step, mine, masked, plain in seen:
        under_gates = 2 <= step < 14
        assert mine == (masked if under_gates else plain)
        assert (masked != plain) == (step < 14), "gates are there from the start"


@pytest.mark.usefixtures("bare")
def test_a_constant_mixture_is_the_run_without_one(tmp_path: Path) -> None:
    """Measuring changes nothing: weights, moments, random numbers and the order of the text."""
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    path = recipe(tmp_path)
    run(load_recipe(path), output=plain)
    sets = ["data.mixture={name: constant, every: 2, sequences: 2, text: 1%}"]
    run(load_recipe(path, sets), output=mixed)
    assert (plain / "model.safetensors").read_bytes() == (mixed / "model.safetensors").read_bytes()
    assert len(events(mixed, "mixture")) == 10


@pytest.mark.parametrize("losses", ["held_out", "training"])
def test_killed_and_resumed_it_is_the_same_run(tmp_path: Path, losses: str) -> None:
    path, whole, killed = recipe(tmp_path), tmp_path / "whole", tmp_path / "killed"
    sets = ["--set", DYNAMIC, "--set", "data.mixture.every=2"]
    sets += ["--set", f"data.mixture.losses={losses}"]
    assert warm.wait(start(path, whole, *sets)) == 0, log(whole).read_text()
    for place in ("step:11", "step:3", "step:9"):
        again = ["--resume"] if killed.exists() else []
        process = start(path, killed, *sets, *again, fault=place)
        assert warm.wait(process) == -signal.SIGKILL, log(killed).read_text()
    assert warm.wait(start(path, killed, *sets, "--resume")) == 0, log(killed).read_text()
    for name in ("model.safetensors", "plans.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert record(whole) == record(killed)
    assert len(events(killed, "mixture")) == 10


@pytest.mark.usefixtures("bare")
def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """It has neither weights of domains nor what they are owed."""
    path, whole, out = recipe(tmp_path), tmp_path / "whole", tmp_path / "out"
    run(load_recipe(path), output=whole)
    snapshot = RunState.snapshot

    def earlier(self: RunState, position: dict[str, int]) -> Any:
        saved = snapshot(self, position)
        del saved.values["reference"], saved.values["dominant"], saved.values["stream"]["mixture"]
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "snapshot", earlier)
        patch.setattr(fault, "_seen", Counter())
        patch.setenv(fault.VARIABLE, "step:10:out_of_memory")
        with pytest.raises(RunError, match="not enough memory"):
            run(load_recipe(path), output=out)
    run(load_recipe(path), output=out, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("mode", "losses"), [("replicate", "held_out"), ("shard", "held_out"), ("shard", "training")]
)
def test_two_processes_measure_what_one_does(tmp_path: Path, mode: str, losses: str) -> None:
    path = recipe(tmp_path)
    sets = [DYNAMIC, f"data.mixture.losses={losses}", f"distributed.mode={mode}"]
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    run(load_recipe(path, sets), output=one)
    job = {"recipe": path, "output": two, "set": sets, "bare": True}
    code, said = together([job], tmp_path)
    assert code == 0, said
    assert len(events(two, "mixture")) == 7
    for mine, theirs in zip(events(one, "mixture"), events(two, "mixture"), strict=True):
        assert theirs["losses"] == pytest.approx(mine["losses"], abs=1e-4)
        assert theirs["weights"] == pytest.approx(mine["weights"], abs=1e-4)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (20, ["prune=null"]),
        (30, ["train.tokens=null", "train.stages={pruning: 2560, continued: 1280}"]),
        (
            10,
            [
                *("train=null", "recover={method: lora, tokens: 1280, batch_size: 4}"),
                *("prune.schedule=once", "prune.measure={source: calibration, sequences: 2}"),
            ],
        ),
    ],
    ids=["train", "stages", "recover"],
)
def test_any_training_takes_it(tmp_path: Path, steps: int, changes: list[str]) -> None:
    out = ran(tmp_path, DYNAMIC, GIVEN, *changes)
    found = events(out, "mixture")
    assert [e["step"] for e in found] == [*range(0, steps, 3)]
    assert found[0]["losses"] == {} and found[0]["reference"] == {"letters": 4.5, "numbers": 3.5}
    for earlier, later in itertools.pairwise(found):
        assert later["weights"] == pytest.approx(by_hand(later, earlier["weights"]))


@pytest.mark.usefixtures("bare")
def test_references_by_a_scaling_law(tmp_path: Path) -> None:
    sets = [DYNAMIC, "data.mixture.reference=scaling", SCALING]
    loaded = load_recipe(recipe(tmp_path), sets)
    run(loaded, output=tmp_path / "out")
    spec, sized = loaded.recipe.data.mixture, sized_model(loaded)
    assert spec is not None and sized is not None and sized.target is not None
    wanted = predicted(spec.scaling, sized.target)
    n = sized.target / 1000
    by_law = {"letters": 2 + n**-0.3, "numbers": 1 + 2 * n**-0.2}
    assert wanted == pytest.approx(by_law, abs=1e-9)
    assert events(tmp_path / "out", "mixture")[-1]["reference"] == wanted
    (line,) = [line for line in check(loaded).lines if "reference losses" in line]
    assert f"at {sized.target:,} parameters: letters {wanted['letters']:.4f}" in line


@pytest.mark.usefixtures("bare")
def test_a_dominant_domain_is_warned_of_once(tmp_path: Path) -> None:
    reference = "data.mixture.reference={letters: 0, numbers: 100}"
    out = ran(tmp_path, DYNAMIC, "data.mixture.every=2", reference)
    said = [e["text"] for e in events(out, "warning") if "data.mixture" in e["text"]]
    assert len(said) == 1
    assert "from step 2 on, 99.5% of the samples are of the domain 'letters'" in said[0]


@pytest.mark.usefixtures("bare")
def test_a_run_that_is_too_short_says_so(tmp_path: Path) -> None:
    sets = [DYNAMIC, GIVEN, "data.mixture.every=20"]
    words = "losses are measured every 20 steps, and the run has 20: the weights stay as they are"
    loaded = load_recipe(recipe(tmp_path), sets)
    assert f"warning: data.mixture.every: {words}" in check(loaded).lines
    run(loaded, output=tmp_path / "out")
    said = [e["text"] for e in events(tmp_path / "out", "warning")]
    assert f"data.mixture.every: {words}" in said
    enough = load_recipe(tmp_path / "toy.yaml", [DYNAMIC, GIVEN, "data.mixture.every=19"])
    assert not [line for line in check(enough).lines if "mixture.every" in line]


def test_a_domain_without_held_out_text_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    with pytest.raises(RecipeError, match="numbers holds no text out"):
        load_recipe(path, [DYNAMIC, "data.domains.numbers.holdout=0"])
    with pytest.raises(SourceError, match="there is no held-out text"):
        sets = [DYNAMIC, "data.domains.numbers.holdout=0.0001%"]
        preflight(load_recipe(path, sets), offline=False)


def test_losses_that_follow_no_law_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    rising = SCALING.replace("letters: 2.2", "letters: 2.9")
    path = recipe(tmp_path)
    loaded = load_recipe(path, [DYNAMIC, "data.mixture.reference=scaling", rising])
    assert rising != SCALING
    with pytest.raises(RecipeError, match=r"data.mixture.scaling: domain 'letters': the losses"):
        preflight(loaded, offline=False)
    unknown = ["model={hub: some/model}", "prune=null"]
    loaded = load_recipe(path, [DYNAMIC, "data.mixture.reference=scaling", rising, *unknown])
    with pytest.raises(RecipeError, match="do not fall with size"):
        check(loaded)


def bound(function: Any) -> Bound:
    registry = Registry()
    return Bound(registry.add("mixture", "own", function, "test"))


def test_what_a_plugin_returns_is_checked() -> None:
    given = {"a": 0.25, "b": 0.75}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}
    found = reweighed(bound(lambda weights: weights.float() * 1.0001), *given)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-15)
    assert found == pytest.approx({"a": 0.25, "b": 0.75}, abs=1e-7)
    gaps = reweighed(bound(lambda losses, reference: losses - reference), *given)
    assert gaps == {"a": 1.0, "b": 0.0}, "in the order of the domains, by name"
    wrong: dict[str, Any] = {
        r"returned \(3,\) for 2 domains": lambda weights: torch.ones(3) / 3,
        "returned dict for 2 domains": lambda weights: {},
        "returned the weights a 0.5, b 1.5": lambda weights: weights * 2,
        "returned the weights a -0.5, b 1.5": lambda weights: torch.tensor([-0.5, 1.5]),
        "returned the weights a nan, b nan": lambda weights: weights / 0 * 0,
        "fails: ValueError: no idea": lambda weights: (_ for _ in ()).throw(ValueError("no idea")),
    }
    for said, function in wrong.items():
        with pytest.raises(PluginError, match=said):
            reweighed(bound(function), *given)


def test_steps_of_a_continued_stage_of_its_own_count(tmp_path: Path) -> None:
    """Ten steps of 4 sequences, then ten of 8: as many measurements, at the right sizes."""
    sets = ["train.tokens=null", "train.stages={pruning: 1280, continued: 2560}"]
    sets += ["train.continued={batch_size: 8}", "prune=null", DYNAMIC, "data.mixture.every=6"]
    recipe_ = load_recipe(recipe(tmp_path), sets).recipe
    assert [steps_at(recipe_, tokens) for tokens in (0, 1280, 1536, 3840)] == [0, 10, 11, 20]
    assert measurements(recipe_, 0, 3840) == 3
    assert measurements(recipe_, 0, 1280) == 1 and measurements(recipe_, 1280, 3840) == 2
    assert measurements(recipe_, 0, 768) == 0 and measurements(recipe_, 768, 1280) == 1


def test_the_forecast_counts_the_measurements(tmp_path: Path) -> None:
    """Six times three sequences of two domains, forward only, of the model as it is then."""
    path = recipe(tmp_path)
    launch = Launch(flops_per_second=1e9)
    without, with_it = (plan(load_recipe(path, s), launch) for s in ([], [DYNAMIC]))
    found = with_it.data["flops_of_mixture"]
    assert "flops_of_mixture" not in without.data
    assert with_it.data["flops"] == without.data["flops"]
    sized = sized_model(load_recipe(path))
    assert sized is not None
    whole = flops_per_token(sized.axes, sized.config, {}, 32)
    assert 0.6 * whole / 3 * 6 * 3 * 2 * 32 < found < whole / 3 * 6 * 3 * 2 * 32
    more = with_it.data["seconds"]["all_steps"] - without.data["seconds"]["all_steps"]
    assert more == pytest.approx(found / 1e9)
    dense = plan(load_recipe(path, [DYNAMIC, "prune=null"]), launch).data
    assert dense["flops_of_mixture"] == pytest.approx(whole / 3 * 6 * 3 * 2 * 32)
    assert "for the mixture" in str(with_it)
    assert "flops_of_mixture" not in plan(load_recipe(path, [DYNAMIC, TRAINING]), launch).data
    assert "by the losses of the training text" in str(
        check(load_recipe(path, [DYNAMIC, TRAINING]))
    )


@pytest.mark.usefixtures("bare")
def test_the_record_is_drawn_tracked_and_compared(tmp_path: Path) -> None:
    out = ran(tmp_path, DYNAMIC)
    page = (out / "report.html").read_text()
    for name, title, axis in (
        ("mixture", "Mixture", "fraction of the samples"),
        ("heldout", "Held-out loss", "nats per token"),
    ):
        drawn = (out / "pictures" / f"{name}.svg").read_text()
        assert axis in drawn and "letters" in drawn and "numbers" in drawn
        assert f'aria-label="{title}' in page
    found = events(out, "mixture")
    with (out / "pictures" / "heldout.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for name, loss in found[-1]["losses"].items():
        at_end = next(row for row in rows if row["tokens trained on"] == "2304")
        assert float(at_end[f"{name} (nats per token)"]) == pytest.approx(loss, rel=1e-8)
        level = found[-1]["reference"][name]
        goal = [row[f"{name}, reference (nats per token)"] for row in rows]
        assert [float(cell) for cell in goal if cell] == pytest.approx([level, level], rel=1e-8)
    read = facts.read(out, shown="out").facts
    assert read is not None and read.follows_losses and read.shares == found[0]["weights"]
    shown = curves(typed(found[-1]))
    assert shown == {
        **{f"weight/{name}": weight for name, weight in found[-1]["weights"].items()},
        **{f"held_out/{name}": loss for name, loss in found[-1]["losses"].items()},
    }


def test_the_panel_and_the_plain_lines_show_it() -> None:
    fields = {"tokens": 9, "reference": {}, "weights": {"prose": 0.38, "code": 0.62}}
    status, event = Status(), typed({"event": "mixture", **fields})
    assert "mixture" not in status.line()
    status.update(event)
    assert "mixture code 62 %, prose 38 %" in status.line()
    view = LiveView(io.StringIO(), console=Console(file=(out := io.StringIO()), width=100))
    view.event(event)
    view.close()
    assert "code 62 %, prose 38 %" in out.getvalue()


def test_what_is_evaluated_does_not_steer_training(tmp_path: Path) -> None:
    """The mixture follows windows behind those of the evaluation, as far as there are enough; then
    those in front of these again, with a notice of how many there are.
    """
    loaded = load_recipe(recipe(tmp_path))
    tokenizer = load_model(loaded.recipe.model).tokenizer
    told: list[str] = []
    how: Any = {"offline": True, "say": lambda _: None, "notice": told.append}
    corpus = corpus_of(loaded.recipe, tokenizer, **how)
    every = corpus.heldout("letters", 10_000)
    told.clear()
    behind = corpus.heldout_trained("letters", 4, 3)[0]
    assert behind.equal(every[3:7]) and not told
    short = corpus.heldout_trained("letters", len(every) - 1, 3)[0]
    assert short.equal(every[1:])
    asked = f"{len(every)} of the {len(every) + 2} sequences asked for: 3 that are evaluated"
    assert len(told) == 1 and asked in told[0]
    none_left = corpus.heldout_trained("letters", len(every) + 4, 3)[0]
    assert none_left.equal(every)


def test_the_text_of_other_commands_is_as_before(tmp_path: Path) -> None:
    """`effcompress eval` needs held-out text for its own protocol alone."""
    loaded = load_recipe(recipe(tmp_path), [DYNAMIC, "data.mixture.sequences=9"])
    tokenizer = load_model(loaded.recipe.model).tokenizer
    how: Any = {"offline": True, "say": lambda _: None, "notice": lambda _: None}
    few = corpus_of(loaded.recipe, tokenizer, training=False, **how).summary()["letters"]
    more = corpus_of(loaded.recipe, tokenizer, **how).summary()["letters"]
    assert (few["heldout_tokens"], more["heldout_tokens"]) == (3 * 32, (3 + 9) * 32)
