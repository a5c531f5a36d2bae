"""Damping that is chosen on text which the fit has not seen, against solutions by numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from effcompress import fault, load_recipe, run
from effcompress.distributed.world import ALONE, World
from effcompress.measure.held_out import fitted, sequences_of
from effcompress.measure.moments import Parts, Sums
from effcompress.record.events import parse
from effcompress.record.log import Log
from effcompress.record.sentences import sentence
from effcompress.registry import REGISTRY, Bound
from effcompress.spec import MeasureSpec
from tests.runner.toys import events, recipe

GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
INPUTS, OUTPUTS, LENGTH = 24, 5, 8
Array = np.ndarray


class Toy:
    """Correlated inputs; targets that a weight near ``old`` puts out, and noise. Six sequences of
    the calibration, two of them held out, and fresh ones.
    """

    def __init__(self, noise: float = 1.0, moved: float = 0.3, offset: float = 0.0) -> None:
        draw = np.random.default_rng(0)
        mix = draw.normal(size=(INPUTS, INPUTS)) * np.geomspace(1, 0.05, INPUTS)
        self.old = draw.normal(size=(OUTPUTS, INPUTS))
        true = self.old + moved * draw.normal(size=(OUTPUTS, INPUTS))
        self.x = draw.normal(size=(60, LENGTH, INPUTS)) @ mix.T + offset
        self.t = self.x @ true.T + noise * draw.normal(size=(60, LENGTH, OUTPUTS)) + 2 * offset
        self.weight = torch.tensor(self.old)

    def tokens(self, first: int, last: int) -> tuple[Array, Array]:
        """Inputs and targets of sequences."""
        flat = slice(first, last)
        return self.x[flat].reshape(-1, INPUTS), self.t[flat].reshape(-1, OUTPUTS)

    @property
    def parts(self) -> Parts:
        sums = Sums(OUTPUTS, INPUTS, torch.device("cpu"), split=True)
        for n in range(6):
            sums.add(torch.tensor(self.x[n]), torch.tensor(self.t[n]), held=n >= 4)
        return sums.means(ALONE)

    def error(self, weight: Array, bias: Array | float, first: int, last: int) -> float:
        x, t = self.tokens(first, last)
        return float(np.square(t - x @ weight.T - bias).sum() / np.square(t).sum())


def ridge(x: Array, t: Array, old: Array, damp: float, *, biased: bool) -> tuple[Array, Array]:
    """min sum |W x + b - t|^2 / n + d |W - old|^2 by an augmented system, without any moments."""
    mean, target = (x.mean(0), t.mean(0)) if biased else (np.zeros(INPUTS), np.zeros(OUTPUTS))
    centred, n = x - mean, len(x)
    root = np.sqrt(damp * np.square(centred).mean())
    above = np.concatenate([centred, root * np.sqrt(n) * np.eye(INPUTS)])
    right = np.concatenate([t - target, root * np.sqrt(n) * old.T])
    weight = np.linalg.lstsq(above, right, rcond=None)[0].T
    return weight, target - weight @ mean


def auto(name: str) -> Bound:
    """A refit as a recipe binds it by default."""
    plugin = REGISTRY.get("refit", name)
    return Bound(plugin, {knob: k.default for knob, k in plugin.knobs.items()})


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("name", ["least_squares", "least_squares_bias"])
def test_the_best_of_all_by_brute_force(name: str, noise: float) -> None:
    """Each value is fitted to four sequences and tried on two; the best is fitted to all six."""
    biased = name.endswith("bias")
    toy = Toy(noise, offset=1.0 if biased else 0.0)
    fits = [ridge(*toy.tokens(0, 4), toy.old, damp, biased=biased) for damp in GRID]
    errors = [toy.error(*fit, 4, 6) for fit in fits]
    weight, bias, how = fitted(auto(name), toy.weight, toy.parts)
    damp = GRID[int(np.argmin(errors))]
    assert how.knobs == {"damp": damp}
    assert how.error_before == pytest.approx(toy.error(toy.old, 0.0, 4, 6), rel=1e-9)
    assert how.error_after == pytest.approx(min(errors), rel=1e-9)
    whole, gained = ridge(*toy.tokens(0, 6), toy.old, damp, biased=biased)
    np.testing.assert_allclose(weight.numpy(), whole, rtol=1e-8, atol=1e-10)
    assert (bias is None) == (not biased)
    if bias is not None:
        np.testing.assert_allclose(bias.numpy(), gained, rtol=1e-8, atol=1e-9)


def test_more_noise_takes_more_damping() -> None:
    chosen = [
        fitted(auto("least_squares"), toy.weight, toy.parts)[2] for toy in map(Toy, (0.05, 5))
    ]
    low, high = (how.knobs["damp"] for how in chosen if how.knobs)
    assert low < high


def test_it_is_better_on_fresh_text_than_a_fit_that_knows_its_text_by_heart() -> None:
    toy = Toy(noise=3.0)
    weight, _, _ = fitted(auto("least_squares"), toy.weight, toy.parts)
    x, t = toy.tokens(0, 6)
    by_heart = np.linalg.lstsq(x, t, rcond=None)[0].T
    assert toy.error(by_heart, 0.0, 0, 6) < toy.error(weight.numpy(), 0.0, 0, 6)
    mine, theirs = (toy.error(w, 0.0, 6, 60) for w in (weight.numpy(), by_heart))
    assert mine < 0.9 * theirs and mine < toy.error(toy.old, 0.0, 6, 60)


def test_where_no_value_helps_the_weight_stays() -> None:
    toy = Toy(noise=5.0, moved=0.0)
    toy.t[4:6] = 1.001 * toy.x[4:6] @ toy.old.T  # what the weight does there is nearly right
    weight, bias, how = fitted(auto("least_squares"), toy.weight, toy.parts)
    assert how.knobs is None and bias is None and torch.equal(weight, toy.weight)
    assert how.error_after == how.error_before == pytest.approx(toy.error(toy.old, 0.0, 4, 6))


def test_a_number_fits_to_all_text_at_once() -> None:
    toy = Toy()
    bound = Bound(REGISTRY.get("refit", "least_squares"), {"damp": 0.3})
    assert sequences_of(bound, MeasureSpec(refit_sequences=40)).held_out == 0
    weight, _, how = fitted(bound, toy.weight, Parts(toy.parts.all))
    assert (how.knobs, how.error_before, how.error_after) == ({"damp": 0.3}, None, None)
    wanted, _ = ridge(*toy.tokens(0, 6), toy.old, 0.3, biased=False)
    np.testing.assert_allclose(weight.numpy(), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("read", "fraction", "held"), [(128, 0.25, 32), (2, 0.25, 1), (3, 0.9, 2)])
def test_the_last_sequences_are_held_out_on_whichever_process(
    read: int, fraction: float, held: int
) -> None:
    spec = MeasureSpec(refit_sequences=read, refit_held_out=fraction)
    sequences = sequences_of(auto("least_squares"), spec)
    assert (sequences.read, sequences.held_out) == (read, held)
    for size in (1, 2, 3):
        apart = []
        for rank in range(size):
            mine = [*range(read)][rank::size]
            apart += [mine[n] for n in sequences.own(World(rank, size))]
        assert sorted(apart) == [*range(read - held, read)]


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe that refits after a cut in training, and its run."""
    folder = tmp_path_factory.mktemp("refitted")
    path = recipe(
        folder,
        schedule="{name: once, at: 640}",
        criterion="wanda",
        measure="{source: calibration, sequences: 6, propagate: true, refit_sequences: 12}",
        tokens=1024,
    )
    text = path.read_text().replace("{name: ffn, scope: lockstep}, hidden]", "{name: ffn}]")
    path.write_text(text.replace("  commit_every", "  refit: least_squares_bias\n  commit_every"))
    run(load_recipe(path), output=folder / "whole")
    return path, folder / "whole"


def test_a_run_records_how_each_fit_was_chosen(refitted: tuple[Path, Path]) -> None:
    """Together with `propagate` and biases."""
    (found,) = events(refitted[1], "refit")
    assert (found["sequences"], found["held_out"]) == (12, 3)
    assert found["fits"].keys() == found["change"].keys() and len(found["fits"]) == 4
    for name, how in found["fits"].items():
        if how["knobs"] is None:
            assert found["change"][name] == 0 and how["error_before"] == how["error_after"]
        else:
            assert how["knobs"]["damp"] in GRID and how["error_after"] < how["error_before"]
    texts = {e["sequences"]: e["hash"] for e in events(refitted[1], "calibration")}
    assert texts.keys() == {6, 12}
    lines = (refitted[1] / "metrics.jsonl").read_text().splitlines()
    (said,) = (sentence(parse(line)) for line in lines if '"event": "refit"' in line)
    assert said is not None and said.startswith("4 projections fitted to 12 sequences; error on ")


@pytest.mark.parametrize("place", ["cut", "commit"])
def test_a_run_that_dies_beside_the_refit_chooses_the_same(
    place: str, refitted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    path, whole = refitted

    def dies(at: str) -> None:
        if at == place:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fault, "point", dies)
        with pytest.raises(KeyboardInterrupt):
            run(load_recipe(path), output=tmp_path / "again")
    run(load_recipe(path), output=tmp_path / "again", resume=True)
    one, two = (events(p, "refit") for p in (whole, tmp_path / "again"))
    assert [e["fits"] for e in one] == [e["fits"] for e in two]
    one, two = (load_file(p / "model.safetensors") for p in (whole, tmp_path / "again"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_a_refit_at_commits_comes_behind_each_of_them(tmp_path: Path) -> None:
    """Three rounds of a cut at once: each is measured on the model that the one before has fitted.
    With `target` the first refit comes behind the last cut.
    """
    sets = ["prune.schedule={name: once, at: 0, rounds: 3}", "prune.refit=least_squares"]
    sets += ["prune.measure={source: calibration, sequences: 4, refit_sequences: 4}"]
    sets += ["prune.commit_every=1", "train=null"]
    path = recipe(tmp_path)
    order: dict[str, list[str]] = {}
    for when in ("target", "commits"):
        folder = tmp_path / when
        run(load_recipe(path, [*sets, f"prune.refit_at={when}"]), output=folder)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        named = [json.loads(line)["event"] for line in lines]
        order[when] = [name for name in named if name in ("cut", "commit", "refit")]
    assert order["target"] == [*["cut", "commit"] * 3, "refit"]
    assert order["commits"] == ["cut", "commit", "refit"] * 3
    one, two = (
        [json.loads(line) for line in (tmp_path / when / "plans.jsonl").read_text().splitlines()]
        for when in order
    )
    assert one[0] == two[0], "nothing is fitted before the first cut"
    assert one[1]["scores"] != two[1]["scores"], "the second is measured on another model"


@pytest.mark.parametrize("place", ["cut", "commit"])
def test_a_run_that_dies_between_refits_goes_on_alike(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts while training, each of them committed and fitted."""
    from safetensors.torch import load_file

    sets = ["prune.refit=least_squares", "prune.refit_at=commits", "prune.commit_every=1"]
    sets += ["prune.measure.refit_sequences=4", "save.every=2"]
    path, seen = recipe(tmp_path), list[str]()
    run(load_recipe(path, sets), output=tmp_path / "whole")

    def dies(at: str) -> None:
        seen.append(at)
        if seen.count(place) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fault, "point", dies)
        with pytest.raises(KeyboardInterrupt):
            run(load_recipe(path, sets), output=tmp_path / "again")
    run(load_recipe(path, sets), output=tmp_path / "again", resume=True)
    one, two = (events(tmp_path / p, "refit") for p in ("whole", "again"))
    assert len(one) > 2 and [e["fits"] for e in one] == [e["fits"] for e in two]
    a, b = (load_file(tmp_path / p / "model.safetensors") for p in ("whole", "again"))
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_training_behind_a_refit_is_shown_as_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    monkeypatch.setattr(Log, "phase", lambda self, name, total=None: _noted(self, name, phases))
    sets = ["prune.schedule={name: once, at: 0}", "prune.refit=least_squares"]
    sets += ["prune.measure={source: calibration, sequences: 4, refit_sequences: 4}"]
    run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "run")
    fitted = phases.index("fitting to the source model")
    assert phases[fitted - 1] == phases[fitted + 1] == "pruning and training"


def _noted(log: Log, name: str, phases: list[str]) -> None:
    log.doing = name
    phases.append(name)
