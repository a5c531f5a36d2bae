"""Runs on a device: cuts, export and proof, fused and compiled steps, bf16, resuming."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import _dynamo as dynamo
from transformers import AutoModelForCausalLM

from effcompress import load_recipe, run
from tests.gpu.conftest import SHORT, Ran
from tests.runner.toys import events, plans

WITHIN = 1e-3
"""Of losses after six steps on two devices, which round differently."""


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in events(folder, "step")]


def test_a_run_is_exported_and_proven(ran: Ran, device: str) -> None:
    """The exported folder, read on the CPU in a process of its own, is the model on the device."""
    out = ran(device)
    (proof,) = events(out, "proof")
    assert proof["tokens_equal"] and proof["cache_equal"]
    assert proof["max_logit_difference"] <= proof["tolerance"]
    assert events(out, "run")[0]["device"].partition(":")[0] == device
    assert events(out, "end")[-1]["status"] == "success" and len(events(out, "cut")) > 1
    assert all(cut["memory_bytes"] > 0 and cut["flops"] > 0 for cut in events(out, "cut"))
    found = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out).parameters())
    assert found == events(out, "end")[-1]["params"]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_a_run_is_that_of_the_cpu(ran: Ran, device: str) -> None:
    assert losses(ran(device)) == pytest.approx(losses(ran("cpu")), abs=WITHIN)
    assert plans(ran(device))[0] == plans(ran("cpu"))[0]
    cuts = [sum(e["flops"] for e in events(ran(d), "cut")) for d in (device, "cpu")]
    assert cuts[0] == pytest.approx(cuts[1], rel=0.01)


def test_fused_adamw(ran: Ran, device: str) -> None:
    """On tensors that cuts have shortened, too."""
    fused, plain = (ran(device, f"train.fused={said}") for said in ("true", "false"))
    assert losses(fused) == pytest.approx(losses(plain), abs=1e-4)
    assert plans(fused) == plans(plain) and events(fused, "commit")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_layers(ran: Ran, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU without the C++ compiler, which takes a minute."""
    if device == "cpu":
        made = dynamo.lookup_backend("eager")
        monkeypatch.setattr(dynamo, "lookup_backend", lambda _: made)
    once = ["prune.repair=[norm_gain]", "prune.commit_every=4"]
    code, plain = (ran(device, *once, f"train.compile={said}") for said in ("true", "false"))
    assert losses(code) == pytest.approx(losses(plain), abs=1e-4)
    assert plans(code) == plans(plain)
    assert events(code, "compiled")[-1]["graphs"] >= 1 and not events(plain, "compiled")


def test_bf16(ran: Ran, device: str) -> None:
    """Finite, near fp32, and really in another precision; master weights stay in fp32."""
    rounded, plain = losses(ran(device, "train.precision=bf16")), losses(ran(device))
    assert all(math.isfinite(loss) for loss in rounded)
    assert rounded == pytest.approx(plain, abs=0.05) and rounded != plain
    model = AutoModelForCausalLM.from_pretrained(ran(device, "train.precision=bf16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_resumed(ran: Ran, device: str, tmp_path: Path) -> None:
    """From the checkpoint of the fourth step, moments and random numbers of the device included. A
    GPU adds up gradients in any order, so the last digits may differ there.
    """
    whole, folder = ran(device), tmp_path / "resumed"
    folder.mkdir()
    for file in ("recipe.yaml", "recipe.resolved.yaml", "metrics.jsonl", "plans.jsonl"):
        shutil.copy(whole / file, folder / file)
    saved = "checkpoints/step-00000004"
    shutil.copytree(whole / saved, folder / saved)
    own = whole.parent / "toy.yaml"
    run(load_recipe(own, [*SHORT, f"device={device}"]), output=folder, resume=True)
    assert losses(folder) == pytest.approx(losses(whole), abs=0 if device == "cpu" else WITHIN)
    assert len(losses(folder)) == 6 and events(folder, "end")[-1]["status"] == "success"
