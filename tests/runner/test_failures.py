"""Each failure is bounded, named, and leaves something to go on from."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from effcompress import fault, load_recipe, run, train
from effcompress.errors import RunError
from effcompress.runner.run import named
from tests.conftest import tiny
from tests.runner.toys import events, recipe

OBS = ["prune.repair=[norm_gain, obs_update]"]
SHORT = ["train.tokens=1536", "prune.schedule.groups=3"]
MASKS = ["prune.criterion=mask_fisher", "prune.space=[{name: attention}, {name: ffn}]"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ask for a fault."""

    def now(what: str) -> None:
        monkeypatch.setattr(fault, "_seen", Counter())
        monkeypatch.setenv(fault.VARIABLE, what)

    return now


def finite(out: Path) -> bool:
    """Whether model, checkpoints and record hold nothing but finite numbers."""
    for file in out.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise AssertionError(f"{file.name}: {name}")
    return "nan" not in (out / "metrics.jsonl").read_text().lower()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("save.tensors:2:disk_full", r"checkpoint of step 8 cannot be written.*No space left"),
        ("commit:1:disk_full", "the disk is full, noticed while pruning and training"),
        ("export:1:disk_full", "the model cannot be written.*No space left"),
        ("cut:9:out_of_memory", "not enough memory while pruning and training"),
    ],
)
def test_the_system_cannot_go_on_and_the_run_can(
    tmp_path: Path, ask: Callable[[str], None], what: str, says: str
) -> None:
    path, out = recipe(tmp_path), tmp_path / "out"
    ask(what)
    with pytest.raises(RunError, match=says) as caught:
        run(load_recipe(path), output=out)
    assert "--resume" in str(caught.value.fix)
    end = events(out, "end")[-1]
    assert end["status"] == "failed" and end["reason"]
    assert not (out / "config.json").exists()
    ask("")
    run(load_recipe(path), output=out, resume=True)
    run(load_recipe(path), output=tmp_path / "whole")
    for name in ("model.safetensors", "plans.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_to_do_about_memory(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ):
        said = str(named(error, "training", load_recipe(path).recipe))
        assert "not enough memory while training" in said and "train.micro_batch_size: 2" in said
    small = load_recipe(path, ["train.micro_batch_size=1"]).recipe
    assert "data.sequence_length" in str(named(MemoryError(), "training", small))
    assert named(OSError(errno.EACCES, "no"), "training", small) is None
    assert named(RuntimeError("shapes"), "training", small) is None


def left_out(out: Path) -> list[str]:
    """Warnings about steps."""
    return [e["text"] for e in events(out, "warning") if "left out" in e["text"]]


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """An infinite number in one gradient at these steps."""
    real, calls = train.update, 0

    def update(module, *rest):
        nonlocal calls
        calls += 1
        if calls in steps:
            next(p for n, p in module.named_parameters() if "up_proj" in n).grad[0, 0] = torch.inf
        return real(module, *rest)

    monkeypatch.setattr(train, "update", update)


def spoil_layers(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Something that is no number in the forward pass of these steps; weights stay as they are."""
    real, calls = train.backward, 0

    def backward(module, *rest):
        nonlocal calls
        calls += 1
        hooks: list[Any] = []
        if calls in steps:
            layer = module.get_submodule("model.layers.0")
            hooks.append(layer.register_forward_hook(lambda _m, _a, out: out * torch.nan))
        try:
            return real(module, *rest)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(train, "backward", backward)


def test_one_infinite_gradient_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_gradients(monkeypatch, 6)
    run(load_recipe(recipe(tmp_path), SHORT), output=tmp_path / "out")
    (warning,) = left_out(tmp_path / "out")
    assert warning.startswith("step 6 is left out: ") and "up_proj" in warning
    steps = [e["step"] for e in events(tmp_path / "out", "step")]
    assert steps == [1, 2, 3, 4, 5, *range(7, 13)]
    assert events(tmp_path / "out", "end")[-1]["status"] == "success" and finite(tmp_path / "out")


@pytest.mark.parametrize("sets", [[], OBS, MASKS])
def test_a_layer_that_goes_wrong_for_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str]
) -> None:
    """Neither saliency nor the layers' second moments keep anything of it; not in a row, they do
    not add up.
    """
    spoil_layers(monkeypatch, 3, 7)
    sets = [*SHORT, *sets, "train.bad_steps=1"]
    run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "out")
    warnings = left_out(tmp_path / "out")
    assert [w.split(":")[0] for w in warnings] == ["step 3 is left out", "step 7 is left out"]
    assert all("loss is not finite (domains: letters, numbers)" in w for w in warnings)
    assert ("restart" in warnings[0]) == (OBS[0] in sets)
    assert events(tmp_path / "out", "end")[-1]["status"] == "success" and finite(tmp_path / "out")


def test_more_of_them_in_a_row_stop_the_run_which_goes_on_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path)
    with monkeypatch.context() as context:
        spoil_layers(context, 6, 7, 8, 9)
        with pytest.raises(RunError, match="4 steps in a row cannot be used") as caught:
            run(load_recipe(path, SHORT), output=tmp_path / "out")
    assert "--resume" in str(caught.value)
    assert events(tmp_path / "out", "checkpoint")[-1]["step"] == 9
    assert events(tmp_path / "out", "end")[-1]["status"] == "failed" and finite(tmp_path / "out")
    run(load_recipe(path, SHORT), output=tmp_path / "out", resume=True)
    assert [e["step"] for e in events(tmp_path / "out", "step")] == [1, 2, 3, 4, 5, 10, 11, 12]
    assert events(tmp_path / "out", "end")[-1]["status"] == "success" and finite(tmp_path / "out")


def test_a_criterion_without_numbers_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import effcompress\n\n\n@effcompress.criterion('mine')\ndef mine(weight, grad):\n"
        "    '''Nothing.'''\n    return weight / 0.0 * 0.0\n"
    )
    path = recipe(tmp_path, "plugins: [mine.py]\n", criterion="mine")
    with pytest.raises(RunError, match="criterion 'mine' gives a saliency that is not finite"):
        run(load_recipe(path, ["train.bad_steps=0"]), output=tmp_path / "out")
    assert events(tmp_path / "out", "end")[-1]["status"] == "failed" and finite(tmp_path / "out")


def test_a_fault_that_is_none_is_refused(ask: Callable[[str], None]) -> None:
    ask("cut:now")
    with pytest.raises(RunError, match="POINT:N:ACTION"):
        fault.point("cut")
    fault.point("commit")


@pytest.mark.parametrize("value", ["0", "1", "(weight[:1] * 0 + weight[:1].isnan())"])
def test_nothing_is_cut_by_equal_saliency_unsaid(tmp_path: Path, value: str) -> None:
    plugin = tmp_path / f"same{abs(hash(value))}.py"
    plugin.write_text(
        "import torch\nfrom effcompress import criterion\n\n@criterion('same', paper='none')\n"
        f"def same(weight):\n    return torch.zeros_like(weight) + {value}\n"
    )
    changes = ["prune.criterion=same", f"plugins=[{plugin}]", "recover=null", "train=null"]
    changes += ["prune.schedule={name: once, at: 0}", "prune.measure={source: calibration}"]
    loaded = load_recipe(recipe(tmp_path), changes)
    out = tmp_path / "out"
    if value != "1":
        with pytest.raises(RunError, match="'same' gives every mini-group the saliency 0"):
            run(loaded, output=out)
        assert not events(out, "cut") and events(out, "end")[0]["status"] == "failed"
        return
    run(loaded, output=out)
    said = [e["text"] for e in events(out, "warning") if "have the same saliency" in e["text"]]
    assert len(said) == 3 and any("'ffn.0' and of 1 more sets" in text for text in said)


def test_a_report_that_fails_is_what_the_run_failed_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is closed by then; that it is must not be the error that people see."""

    def broken(_folder: Path) -> Path:
        raise RuntimeError("no page")

    monkeypatch.setattr("effcompress.report.write", broken)
    loaded = load_recipe(recipe(tmp_path), SHORT)
    with pytest.raises(RuntimeError, match="no page"):
        run(loaded, output=tmp_path / "out")
    assert [e["status"] for e in events(tmp_path / "out", "end")] == ["success"]


def test_no_space_for_the_report_of_a_good_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is over, and may have kept no checkpoint to go on from."""

    def full(folder: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "pictures"))

    monkeypatch.setattr("effcompress.report.write", full)
    loaded, out = load_recipe(recipe(tmp_path), [*SHORT, "save.keep_after=0"]), tmp_path / "out"
    with pytest.raises(RunError, match="written and proven, but not its report") as caught:
        run(loaded, output=out)
    assert f"effcompress report {out}" in str(caught.value.fix)
    assert "--resume" not in str(caught.value.fix)
    assert [e["status"] for e in events(out, "end")] == ["success"]


def test_a_full_disk_that_a_library_says_in_words(tmp_path: Path) -> None:
    """Those written in Rust (tokenizers, safetensors) have classes of their own."""
    error = Exception("No space left on device (os error 28)")
    known = named(error, "exporting", load_recipe(recipe(tmp_path)).recipe)
    assert isinstance(known, RunError) and "disk is full, noticed while exporting" in known.what


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_source_that_is_not_finite_is_named_by_its_weight(tmp_path: Path, value: float) -> None:
    model, folder = tiny(vocab_size=258), tmp_path / "source"
    dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"].data[0, 0] = value
    model.save_pretrained(folder)
    sets = [f"model={{folder: {folder}, tokenizer: bytes}}"]
    with pytest.raises(RunError, match=r"not finite: model\.layers\.1\.mlp\.up_proj") as caught:
        run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "out")
    assert "from its source again" in str(caught.value.fix)
