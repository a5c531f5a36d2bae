"""Two processes over gloo do what one does: same cuts, same losses, same model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from effcompress import checkpoint, load_recipe, run
from effcompress.estimate.allocation import LatencyTable, dependencies, place_of
from effcompress.estimate.feasibility import levels_of, sized_model
from effcompress.runner import run as story
from tests import warm
from tests.distributed import worker
from tests.runner.toys import events, plans, recipe, repeatable, weight_files

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this

WORKER = Path(__file__).with_name("worker.py")
OBS = ["prune.repair=[norm_gain, obs_update]"]
ONCE = ["prune.measure={source: calibration, sequences: 6}", "prune.schedule={name: once, at: 0}"]
SHORT = ["train.tokens=1280", "prune.schedule={name: continuous, every: 1, start: 256, groups: 4}"]
MIXTURE = (
    "model.shape={model_type: qwen3_moe, hidden_size: 32, intermediate_size: 64, head_dim: 8, "
    "moe_intermediate_size: 16, num_experts: 6, num_experts_per_tok: 2, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}"
)
TRAINING = {
    "taylor": [],
    "taylor_second": ["prune.hessian=adam"],
    "taylor_mixed": ["prune.hessian=fisher_diag"],
    "magnitude": [],
    "random": [],
    "mask_fisher": ["prune.space=[{name: attention}, {name: ffn}]"],
    "mask_taylor": ["prune.space=[{name: attention}, {name: ffn}]", "train.micro_batch_size=2"],
}
ODD = "prune.measure.sequences=5"
"""One process has fewer than the other."""
CALIBRATION = {
    "taylor": ["prune.repair=[norm_gain, obs_update]", ODD],
    "taylor_second": ["prune.hessian=fisher_diag"],
    "taylor_mixed": ["prune.hessian=fisher_diag", ODD],
    "magnitude": [],
    "random": [],
    "mask_fisher": ["prune.space=[{name: attention}, {name: ffn}]", ODD],
    "mask_taylor": ["prune.space=[{name: attention}, {name: ffn}]"],
    "wanda": ["prune.space=[{name: attention}, {name: ffn}]"],
    "flap": ["prune.space=[{name: attention}, {name: ffn}]", "export.form=exact"],
    "minitron": ["prune.space=[{name: ffn}, hidden]"],
    "block_influence": ["prune.space=[layer]", "prune.target={shape: {layer: 1}}", ODD],
    "depth_order": ["prune.space=[layer]", "prune.target={shape: {layer: 1}}"],
    "ziplm": [
        "prune.space=[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]",
        *("prune.repair=[obs_update]", "export.form=exact"),
    ],
    "two_ssp": [
        *("prune.space=[ffn, attention_block]", "prune.selector=width_first", "export.form=exact"),
        *("prune.target={shape: {ffn: 48, attention_block: 1}}", "prune.schedule=two_stages"),
        "prune.measure={source: calibration, sequences: 6, ablation_sequences: 3}",
    ],
}


PER_LAYER = "{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}"
LEVELED = ["prune.criterion=ziplm", "prune.selector=null", "export.form=exact"]
LEVELED.append(f"prune.space=[{PER_LAYER}, attention_block, mlp_block]")
LEVELS = {
    "program": ["prune.allocation={name: dynamic_program, shrink: 0.8}"],
    "evolution": [
        "prune.allocation={name: evolution, generations: 1, offspring: 3, survivors: [1]}"
    ],
}
"""Widths of all blocks."""


def together(jobs: Sequence[dict[str, Any]], folder: Path, processes: int = 2) -> tuple[int, str]:
    """(exit code, standard error) of that many processes that run these jobs."""
    return warm.together(worker.main, listed(jobs, folder), folder=folder, processes=processes)


def launched(jobs: Sequence[dict[str, Any]], folder: Path) -> tuple[int, str]:
    """The same by two processes that `torchrun` launches, and ends when one of them dies."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *start, str(WORKER), str(listed(jobs, folder))],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    return done.returncode, done.stderr


def listed(jobs: Sequence[dict[str, Any]], folder: Path) -> Path:
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs, default=str))
    return path


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in events(folder, "step")]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(48).reshape(2, 24)).logits


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


def assert_same_run(one: Path, two: Path) -> None:
    """Sixty steps with cuts of all kinds, within rounding."""
    assert len(losses(two)) == 60
    assert plans(one) == plans(two), two.name
    kinds = {key.split(".")[0] for line in plans(two) for key in line["plan"]}
    assert kinds == {"attention", "ffn", "hidden"}
    assert losses(two) == pytest.approx(losses(one), abs=1e-4), two.name
    torch.testing.assert_close(logits(one), logits(two), atol=1e-3, rtol=0)
    for kind in ("evaluation", "commit", "end"):  # one record, of the main process
        assert len(events(one, kind)) == len(events(two, kind))


@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_isolated_documents(tmp_path: Path, mode: str) -> None:
    """Each process gets the positions of its own rows."""
    sets = ["prune=null", "train.tokens=2048", "data.sequence_length=128"]
    sets += ["data.documents={isolate: true}", "train.micro_batch_size=1"]
    path = recipe(tmp_path)
    run(load_recipe(path, sets), output=tmp_path / "one")
    jobs = [
        {"recipe": path, "output": tmp_path / "two", "set": [*sets, f"distributed.mode={mode}"]}
    ]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    run(load_recipe(path, sets[:3]), output=tmp_path / "open")
    assert losses(tmp_path / "open") != pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    one, two = (events(tmp_path / name, "evaluation")[1] for name in ("one", "two"))
    for domain, score in one["domains"].items():
        assert two["domains"][domain]["loss"] == pytest.approx(score["loss"], abs=1e-5)


def test_sixty_steps_with_cuts_of_all_kinds(tmp_path: Path) -> None:
    """Saliency as training goes on and the local update (variant B), accumulation on one side."""
    path = recipe(tmp_path, tokens=7680, schedule="{name: continuous, every: 2}")
    cases = {"a": [], "b": OBS, "accumulated": ["train.micro_batch_size=1"]}
    for name, sets in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = [{"recipe": path, "output": tmp_path / f"two_{n}", "set": s} for n, s in cases.items()]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    for name in cases:
        one, two = tmp_path / f"one_{name}", tmp_path / f"two_{name}"
        assert_same_run(one, two)
        assert events(two, "run")[0]["processes"] == 2


def test_a_stream_is_sliced_as_one_process_slices_it(tmp_path: Path) -> None:
    """Each reads a part of the text; rank 0 chooses bases and fits; both then train one model."""
    path = recipe(tmp_path)
    sets = ["prune.space=[hidden]", "prune.target={shape: {hidden: 24}}", *ONCE]
    sets += ["export.form=exact", "train.tokens=1280", "prune.refit=least_squares"]
    sets += ["prune.criterion=null", "prune.selector=null", "prune.rotate=slicegpt"]
    run(load_recipe(path, sets), output=tmp_path / "one")
    jobs = [{"recipe": path, "output": tmp_path / "two", "set": sets}]
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    alone, shared = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert shared[0] == pytest.approx(alone[0], abs=1e-3)
    # Directions of nearly equal energy turn among each other by rounding, and AdamW is not
    # indifferent to bases.
    assert shared == pytest.approx(alone, abs=1e-2)
    one, two = (events(tmp_path / name, "rotated")[0] for name in ("one", "two"))
    for place, other in zip(one["places"], two["places"], strict=True):
        assert other["energy"] == pytest.approx(place["energy"], abs=1e-5)
    assert [how["knobs"] for how in one["fits"]] == [how["knobs"] for how in two["fits"]]
    assert len(one["fits"]) == 4
    assert two["max_logit_difference"] < 1e-4


def test_a_refit_chooses_what_it_chooses_alone(tmp_path: Path) -> None:
    """Each process reads a part of the text, of which some is held out."""
    path = recipe(tmp_path)
    sets = [*ONCE, "train.tokens=640", "prune.measure.refit_sequences=10", "export.form=exact"]
    cases = {
        name: [*sets, f"prune.refit={name}", "prune.space=[ffn]", "prune.criterion=magnitude"]
        for name in ("least_squares", "least_squares_bias")
    }
    # Too few for each process to read two: both read all of them.
    cases["few"] = [*cases["least_squares"], "prune.measure.refit_sequences=3"]
    # Every sequence has a mask of its own, and one process reads fewer of them.
    cases["isolated"] = [*cases["least_squares"], "data.documents={isolate: true}"]
    cases["isolated"] += ["prune.measure.refit_sequences=9", "data.sequence_length=64"]
    for name, each in cases.items():
        run(load_recipe(path, each), output=tmp_path / f"one_{name}")
    jobs = in_both_modes(path, tmp_path, cases)
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    for job in jobs:
        two = job["output"]
        one = tmp_path / f"one_{two.name.partition('_')[2]}"
        (alone,), (shared,) = events(one, "refit"), events(two, "refit")
        assert len(alone["fits"]) == len(shared["fits"]) == 4
        for weight, how in alone["fits"].items():
            other = shared["fits"][weight]
            assert other["knobs"] == how["knobs"]
            for key in ("error_before", "error_after"):
                assert other[key] == pytest.approx(how[key], rel=1e-4, abs=1e-6)
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)
        assert_same_weights(one, two)


def assert_same_weights(one: Path, two: Path, within: float = 1e-4) -> None:
    """In the last checkpoint of each."""
    weights, others = weights_of(one), weights_of(two)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, atol=within, rtol=0, msg=name)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.newest(folder / "checkpoints", pytest.fail)
    assert saved is not None
    return dict(saved.part("model/"))


def test_every_criterion_chooses_what_it_chooses_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicated and sharded."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path = recipe(tmp_path)
    cases = {}
    for source, table, common in (
        ("t", TRAINING, SHORT),
        ("c", CALIBRATION, ["train=null", *ONCE]),
    ):
        for name, sets in table.items():
            repair = ["prune.repair=[]"]
            cases[f"{source}_{name}"] = [f"prune.criterion={name}", *common, *repair, *sets]
    for name, more in LEVELS.items():
        cases[f"c_{name}"] = [*LEVELED, *more, "train=null", *ONCE, "prune.repair=[obs_update]"]
    # Layer by layer on what pruned layers hand on.
    cases["c_propagated"] = [*cases["c_wanda"], "prune.measure.propagate=true"]
    per_layer = [f"{{name: {kind}, scope: per_layer}}" for kind in ("attention", "ffn")]
    cases["c_interleaved"] = [
        *("train.tokens=1280", "prune.criterion=taylor", "prune.selector=adaptive", ONCE[0]),
        "prune.schedule={name: interleaved, stages: 3, restart: true}",
        f"prune.space=[{', '.join(per_layer)}]",
        "prune.repair=[]",
    ]
    for name, sets in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = in_both_modes(path, tmp_path, cases, of_one={f"c_{name}" for name in LEVELS})
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    assert_same_cuts(tmp_path, cases, jobs)


def in_both_modes(
    path: Path,
    folder: Path,
    cases: Mapping[str, Sequence[str]],
    of_one: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Jobs ``replicate_NAME`` and, unless it is ``of_one``, ``shard_NAME``."""
    return [
        {
            **{"recipe": path, "output": folder / f"{mode}_{name}", "bare": True},
            "set": [*sets, f"distributed.mode={mode}"],
        }
        for name, sets in cases.items()
        for mode in ("replicate", "shard")
        if mode == "replicate" or name not in of_one
    ]


def assert_same_cuts(
    folder: Path, cases: Mapping[str, Sequence[str]], jobs: Sequence[Mapping[str, Any]]
) -> None:
    """Every job cut what ``one_NAME`` did."""
    assert len(jobs) > len(cases)
    for job in jobs:
        name = job["output"].name.partition("_")[2]
        one, two = plans(folder / f"one_{name}"), plans(job["output"])
        assert one and one == two, job["output"].name


def test_operations_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all together: divided work adds up, what each repeats counts once, and passes that
    only keep a sharded model's collectives complete do not count. Replicated and sharded.
    """
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path = recipe(tmp_path)
    common = [ONCE[0], "evaluate.sequences=3", "export.form=exact"]
    cases = {
        # Five sequences: one process is one short. Second moments, a repair, a fit of ten.
        "divided": [
            *(*common, ONCE[1], ODD, "train.tokens=256", "prune.repair=[norm_gain, obs_update]"),
            *("prune.refit=least_squares", "prune.measure.refit_sequences=10"),
        ],
        "alike": [
            *(*common, ONCE[1], "train=null", "prune.criterion=wanda", "prune.repair=[]"),
            *("prune.space=[{name: attention}, {name: ffn}]", "prune.measure.propagate=true"),
            "sparsify={method: sparsegpt, sparsity: 50%, sequences: 3}",
        ],
    }
    for name, sets in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = in_both_modes(path, tmp_path, cases)
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    for job in jobs:
        mode, _, name = job["output"].name.partition("_")
        for kind in ("cut", "refit", "sparsify", "step"):
            alone, shared = (events(tmp_path / f"{of}_{name}", kind) for of in ("one", mode))
            assert len(alone) == len(shared)
            for one, two in zip(alone, shared, strict=True):
                assert one["flops"] > 0
                assert two["flops"] == pytest.approx(one["flops"], rel=1e-9), (mode, name, kind)


def test_times_are_those_of_the_main_process(tmp_path: Path) -> None:
    """The choice depends on a clock; both cut alike, or their gradients could not be added up."""
    sets = [*LEVELED, *LEVELS["program"], *ONCE, "train.tokens=512", "prune.repair=[obs_update]"]
    sets += ["prune.target={speedup: 1.5}", "prune.workload={length: 8, rounds: 2, threads: 1}"]
    path = recipe(tmp_path)
    loaded = load_recipe(path, sets)
    prune, sized = loaded.recipe.prune, sized_model(loaded)
    assert prune is not None and prune.workload is not None and sized is not None
    of = dependencies(sized.axes, levels_of(prune, sized), prune.workload, "cpu", "", 1)
    seconds = {
        kind: {w: each * w for w in of["widths"][kind]}
        for kind, each in (("attention", 0.5), ("ffn", 0.05))
    }
    place_of(of).parent.mkdir(parents=True)
    place_of(of).write_text(LatencyTable(of, seconds, 10.0).text())
    out = tmp_path / "two"
    code, said = together([{"recipe": path, "output": out, "set": sets}], tmp_path)
    assert code == 0, said
    (chosen,), (measured,) = events(out, "allocation"), events(out, "latency")
    limit = chosen["aimed"] or chosen["asked"]  # a toy need not take what the table says
    assert chosen["before"] == 10.0 and chosen["predicted"] <= limit * (1 + 1e-9)
    assert measured["measured"] > 0 and len(losses(out)) == 4
    left = {name: size for name, size in chosen["widths"].items() if size}
    assert {k: w for k, w in events(out, "end")[0]["widths"].items() if k in left} == left


def test_experts_are_those_chosen_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are divided among the processes: sums over tokens of both make the means."""
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    path = recipe(tmp_path)
    common = ["train=null", *ONCE, MIXTURE, "prune.space=[expert]", "prune.repair=[]"]
    common += ["prune.target={shape: {expert: 3}}"]
    names = ("reap", "ean", "man", "msan", "mone", "frequency")
    cases = {name: [f"prune.criterion={name}", *common] for name in names}
    cases["propagated"] = [*cases["reap"], "prune.measure.propagate=true"]
    cases["novice"] = [*cases["ean"], "prune.repair=[novice]", "export.form=exact"]
    for name, sets in cases.items():
        run(load_recipe(path, sets), output=tmp_path / f"one_{name}")
    jobs = in_both_modes(path, tmp_path, cases)
    code, said = together(jobs, tmp_path)
    assert code == 0, said
    assert_same_cuts(tmp_path, cases, jobs)


@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_resumed_by_two_by_one_and_by_four(tmp_path: Path, mode: str) -> None:
    """From a checkpoint of two: by two bit for bit, by one and, of rows, by four within
    rounding.
    """
    path = recipe(tmp_path)
    sets = [*OBS, "save={every: 4, keep: 50, keep_after: 50}", f"distributed.mode={mode}"]
    whole = tmp_path / "whole"
    code, said = together([{"recipe": path, "output": whole, "set": sets}], tmp_path)
    assert code == 0, said
    held = sorted(f.name for f in (whole / "checkpoints/step-00000008").glob("*.safetensors"))
    rows = [f"rows-0000{rank}-of-00002.safetensors" for rank in (0, 1)]
    assert held == [*(rows if mode == "shard" else []), "tensors.safetensors"]
    for name in ("by_two", "by_one", "by_four"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "plans.jsonl"):
            shutil.copy(whole / file, folder / file)
        shutil.copytree(whole / "checkpoints/step-00000008", folder / "checkpoints/step-00000008")
    if mode == "shard":
        more = {"recipe": path, "output": tmp_path / "by_four", "set": sets, "resume": True}
        code, said = together([{**more, "bare": True}], tmp_path, processes=4)
        assert code == 0, said
    job = {"recipe": path, "output": tmp_path / "by_two", "set": sets, "resume": True}
    code, said = together([job], tmp_path)
    assert code == 0, said
    run(load_recipe(path, sets), output=tmp_path / "by_one", resume=True)
    for file in (*weight_files(whole), "plans.jsonl", "config.json"):
        assert (whole / file).read_bytes() == (tmp_path / "by_two" / file).read_bytes(), file
    for kind in ("step", "cut", "commit", "evaluation"):
        assert repeatable(events(whole, kind)) == repeatable(events(tmp_path / "by_two", kind))
    for name in ("by_one", *(["by_four"] if mode == "shard" else [])):
        assert plans(whole) == plans(tmp_path / name), name
        assert losses(tmp_path / name) == pytest.approx(losses(whole), abs=1e-4), name


def test_one_that_dies_ends_all_and_the_run_goes_on(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    code, said = together([{"recipe": path, "output": whole}], tmp_path)
    assert code == 0, said
    code, said = launched([{"recipe": path, "output": hurt, "dies": 11}], tmp_path)
    assert code != 0 and not (hurt / "config.json").exists()
    code, said = launched([{"recipe": path, "output": hurt, "resume": True}], tmp_path)
    assert code == 0, said
    for file in (*weight_files(whole), "plans.jsonl"):
        assert (whole / file).read_bytes() == (hurt / file).read_bytes(), file


def test_the_record_says_that_another_process_is_gone(tmp_path: Path) -> None:
    """In the words of the error, not in those of gloo's connections."""
    job = {"recipe": recipe(tmp_path), "output": tmp_path / "out", "dies": 3, "bare": True}
    code, said = together([job], tmp_path)
    assert code != 0
    (end,) = events(tmp_path / "out", "end")
    assert end["status"] == "failed" and "gloo" not in said.partition("Traceback")[0]
    assert end["reason"].startswith("another of the 2 processes of this run stopped")


@pytest.mark.parametrize("mode", ["replicate", "shard"])
def test_what_happens_to_one_is_everyones(tmp_path: Path, mode: str) -> None:
    """One is asked to stop, so both do, at the same step; one computes what is no number, so both
    leave the step out, and the second moments of both restart.
    """
    path, sets = recipe(tmp_path), [*OBS, f"distributed.mode={mode}"]
    jobs = [
        {"recipe": path, "output": tmp_path / "out", "set": sets, "asked": 6},
        {"recipe": path, "output": tmp_path / "out", "set": sets, "resume": True, "spoils": 4},
    ]
    _, said = together(jobs, tmp_path)
    for rank in (0, 1):
        assert f"process {rank}: by SIGTERM behind step 6, with a checkpoint" in said, said
    (warning,) = [w["text"] for w in events(tmp_path / "out", "warning") if "left" in w["text"]]
    assert warning.startswith("step 10 is left out: the loss is not finite")
    assert "restart" in warning
    assert events(tmp_path / "out", "end")[-1]["status"] == "success"
    assert "nan" not in (tmp_path / "out" / "metrics.jsonl").read_text().lower()


def test_one_that_cannot_write_stops_all(tmp_path: Path) -> None:
    """The disk of one is full; the checkpoint before stays, and the run goes on from it."""
    path = recipe(tmp_path)
    sets = ["distributed.mode=shard", "save={every: 4, keep: 50, keep_after: 50}"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    job = {"recipe": path, "output": out, "set": sets}
    jobs = [{**job, "full": 2}, {**job, "output": whole}, {**job, "resume": True}]
    _, said = together(jobs, tmp_path)
    for rank in (0, 1):
        where = f"process {rank}: {out / 'checkpoints'}: the checkpoint of step 8 cannot be written"
        assert where in said, said
    for file in (*weight_files(whole), "plans.jsonl"):
        assert (whole / file).read_bytes() == (out / file).read_bytes(), file
    assert not [*(out / "checkpoints").glob(".writing-*")]


def test_an_error_of_the_main_process_is_everyones(tmp_path: Path) -> None:
    """Nobody waits for somebody who is gone."""
    path = recipe(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("all of it")
    code, said = together([{"recipe": path, "output": tmp_path / "taken"}], tmp_path)
    assert code != 0
    assert said.count("what is in it is no run of effcompress") == 2
    assert sorted(p.name for p in (tmp_path / "taken").iterdir()) == ["thesis.txt"]
