"""What saliency costs a step, and the memory that ``plan`` states, on a device."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from effcompress.estimate.forecast import plan
from effcompress.runner import run as story
from tests.gpu.conftest import require_gpus
from tests.runner.toys import events, recipe

SHAPES = {
    "cpu": (),
    # SmolLM2-135M without most of its vocabulary.
    "cuda": (
        "model.shape={model_type: llama, hidden_size: 576, intermediate_size: 1536, "
        "num_hidden_layers: 30, num_attention_heads: 9, num_key_value_heads: 3, head_dim: 64, "
        "tie_word_embeddings: true, max_position_embeddings: 2048}",
        "data.sequence_length=256",
    ),
}
STEPS = 12


def sets_of(device: str, *more: str) -> list[str]:
    length = 32 if device == "cpu" else 256
    late = f"{{name: continuous, every: 1, start: {(STEPS - 1) * 4 * length}, groups: 4}}"
    cut = ["prune.target={keep: 97%}", f"prune.schedule={late}", f"device={device}"]
    return [*SHAPES[device], *cut, f"train.tokens={STEPS * 4 * length}", *more]


def test_a_step_with_saliency(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saliency rides on the gradients of training: it changes no loss before the first cut, and on
    a GPU it takes a tenth of a step at most.
    """
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    path, rates = recipe(tmp_path), []
    for name, sets in {"with": sets_of(device), "without": sets_of(device, "prune=null")}.items():
        run(load_recipe(path, sets), output=tmp_path / name)
        steps = events(tmp_path / name, "step")
        rates.append(statistics.median(e["tokens_per_second"] for e in steps[2:-1]))
    both = [
        [e["loss"] for e in events(tmp_path / n, "step")][: STEPS - 1] for n in ("with", "without")
    ]
    assert both[0] == pytest.approx(both[1], abs=0 if device == "cpu" else 1e-4)
    assert events(tmp_path / "with", "cut") and not events(tmp_path / "without", "cut")
    if device == "cuda":
        assert rates[1] / rates[0] < 1.1


@pytest.mark.gpu
def test_the_memory_that_plan_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest phase against what torch allocated. On a CPU the peak is that of the whole
    process (`benchmarks/memory.py`).
    """
    require_gpus(1)
    monkeypatch.setattr(story, "export_and_prove", lambda *_: None)
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    path, sets = recipe(tmp_path), sets_of("cuda", "evaluate.batch_size=1")
    peaks = []
    begin = story.prune_event

    def cutting(*given: object) -> None:
        peaks.append(torch.cuda.max_memory_allocated())  # before the cut's meter resets it
        begin(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(story, "prune_event", cutting)
    torch.cuda.reset_peak_memory_stats()
    run(load_recipe(path, sets), output=tmp_path / "out")
    said = plan(load_recipe(path, sets)).data["memory_bytes"]
    largest = max(said[phase]["total"] for phase in ("backward", "update"))
    assert peaks[0] == pytest.approx(largest, rel=0.15)
    cut = max(e["memory_bytes"] for e in events(tmp_path / "out", "cut"))
    assert cut == pytest.approx(said["cut"]["total"], rel=0.25)
