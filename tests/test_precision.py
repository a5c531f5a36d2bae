"""Which precision calibration computes in, and that sums stay exact in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from effcompress import load_recipe, run
from effcompress.injectable import MOMENTS
from effcompress.measure.blockwise import blockwise
from effcompress.measure.grams import Grams, Squares
from effcompress.measure.hooks import linears
from effcompress.measure.statistics import InputStatistics
from effcompress.measure.stats import collect
from effcompress.model.families import family_of
from effcompress.precision import multiplies_bf16, precision_on
from effcompress.registry import REGISTRY, Bound
from effcompress.runner import prune as pruning
from effcompress.runner import run as story
from tests.conftest import tiny, tokens
from tests.runner.toys import events, recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FISHER = Bound(REGISTRY.get("hessian", "fisher_diag"))
BF16 = torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("has", [None, "avx512_bf16", "amx_tile"])
def test_a_cpu_that_multiplies_bf16(has: str | None, monkeypatch: Any) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == has)
    assert multiplies_bf16(CPU) == (has is not None)
    assert precision_on(CPU, "auto") == ("fp32" if has is None else "bf16")
    assert precision_on(CPU, "bf16") == "bf16" and precision_on(CPU, "fp32") == "fp32"


@pytest.mark.parametrize(
    ("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)]
)
def test_a_gpu_that_multiplies_bf16(capability: Any, native: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert multiplies_bf16(GPU) == native
    assert not multiplies_bf16(torch.device("mps"))


def test_gradients_are_those_of_autocast_added_in_fp32() -> None:
    """The reference takes every sequence in a context of its own, and adds in fp64."""
    model, reference, ids = tiny(), tiny(), tokens(3)
    stats = collect(model, ids, ("grad", "hess"), FISHER, precision="bf16")
    exact = collect(tiny(), ids, ("grad",), None)
    grads: dict[str, list[torch.Tensor]] = {}
    for row in ids:
        reference.zero_grad()
        with BF16:
            loss = reference(input_ids=row[None], labels=row[None], use_cache=False).loss
        loss.backward()
        for name, p in reference.named_parameters():
            grads.setdefault(name, []).append(p.grad.double())
    apart = 0.0
    for name, each in grads.items():
        found = stats.rows(name, 0, stats.shape(name)[0])
        assert found["grad"].dtype == found["hess"].dtype == torch.float32
        torch.testing.assert_close(found["grad"].double(), torch.stack(each).mean(0))
        fisher = torch.stack(each).square().mean(0)
        torch.testing.assert_close(found["hess"].double(), fisher, rtol=1e-4, atol=1e-9)
        plain = exact.rows(name, 0, stats.shape(name)[0])["grad"]
        apart = max(apart, float((found["grad"] - plain).abs().max() / plain.abs().max()))
    assert 1e-4 < apart < 0.1, "bf16 has 8 bits"


def test_moments_of_bf16_inputs_are_summed_in_full() -> None:
    model, ids = tiny(), tokens(3)
    params = linears(model, "model.layers")
    statistics = InputStatistics(model, params, MOMENTS)
    grams, squares = Grams(model, params, 1 << 62, 1.0), Squares(model, params)
    listening = [hooks.listening() for hooks in (statistics, grams, squares)]
    collect(model, ids, (), None, listening, precision="bf16")
    name = "model.layers.1.mlp.down_proj.weight"
    read: list[torch.Tensor] = []
    for hooks in (statistics, grams, squares):
        hooks.close()
    model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
        lambda _m, args: read.append(args[0][0].double())
    )
    with torch.no_grad(), BF16:
        for row in ids:
            model(input_ids=row[None], use_cache=False)
    assert all(torch.equal(x, x.bfloat16().double()) for x in read), "they arrive in bf16"
    x = torch.cat(read)
    found = statistics.read(name)
    close: Any = {"rtol": 1e-5, "atol": 1e-8}
    torch.testing.assert_close(found["input_mean"].double(), x.mean(0), **close)
    torch.testing.assert_close(found["input_variance"].double(), x.var(0, correction=0), **close)
    torch.testing.assert_close(squares.read(name).double(), x.square().mean(0), **close)
    torch.testing.assert_close(grams.read(name).double(), x.T @ x / len(x), rtol=1e-4, atol=1e-7)


def test_blocks_are_those_of_the_whole_model_under_autocast_and_change_with_their_weights() -> None:
    model, ids = tiny(), tokens(2)
    pattern = family_of(model.config.to_dict()).layer
    made: list[torch.Tensor] = []
    for block in blockwise(model, pattern, ids, precision="bf16"):
        layer = model.get_submodule(block.path)
        handle = layer.register_forward_hook(lambda _m, _args, out: made.append(out))
        for _ in range(2):
            made.clear()
            block.run()
            with torch.no_grad(), BF16:
                for row in ids:
                    model(input_ids=row[None], use_cache=False)
            assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
            with torch.no_grad():
                layer.mlp.down_proj.weight.mul_(0.5)
        handle.remove()
    assert not torch.is_autocast_enabled("cpu")


ONCE = ("train=null", "prune.schedule={name: once, at: 0}", "prune.measure.source=calibration")
FEW = ("prune.measure.sequences=4", "prune.measure.refit_sequences=4")
PER_LAYER = "prune.space=[{name: attention, scope: per_layer}, {name: ffn, scope: per_layer}]"
ZEROS = ("prune=null", "train=null", "sparsify={sparsity: 50%, sequences: 4}")
EACH = {
    "gradients, refit": ("prune.criterion=taylor", "prune.refit=least_squares", *ONCE, *FEW),
    "inputs, propagated": (
        *("prune.criterion=wanda", "prune.space=[ffn]", "prune.measure.propagate=true"),
        *(*ONCE, *FEW),
    ),
    "search": (
        *("prune.space=[hidden, ffn]", "prune.criterion=minitron"),
        *("prune.search={grid: {hidden: 8, ffn: 8}, top: 2, sequences: 2}", *ONCE, *FEW),
    ),
    "loss without a block": (
        *(
            "prune.space=[attention_block]",
            "prune.criterion=two_ssp",
            "prune.target={shape: {attention_block: 1}}",
        ),
        *(*ONCE, *FEW),
    ),
    "allocation": (
        *(PER_LAYER, "prune.criterion=ziplm", "prune.repair=[]", "prune.selector=null"),
        *("prune.allocation={name: evolution, errors: replaced, shrink: 0.8}", *ONCE, *FEW),
    ),
    "zeros": (*ZEROS, "sparsify.method=sparsegpt"),
}
PASSES = {
    pruning: ("measured", "refit_event", "propagated", "search_event", "allocated"),
    story: ("sparsify_event",),
}


@pytest.mark.parametrize("case", EACH)
def test_all_passes_over_calibration_text_compute_in_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear layers say whether they are called under autocast, while text is read for a cut and
    at other times (evaluation, self-test, proof).
    """
    depth, seen = [0], {True: set[bool](), False: set[bool]()}

    def counted(function: Any) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            depth[0] += 1
            try:
                return function(*args, **named)
            finally:
                depth[0] -= 1

        return call

    for module, names in PASSES.items():
        for name in names:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))

    def listen(linear: Any, *_: Any) -> None:
        if isinstance(linear, torch.nn.Linear):
            seen[depth[0] > 0].add(torch.is_autocast_enabled("cpu"))

    key = "sparsify.precision" if case == "zeros" else "prune.measure.precision"
    found: dict[str, Any] = {}
    handle = torch.nn.modules.module.register_module_forward_pre_hook(listen)
    try:
        for precision in ("fp32", "bf16"):
            folder = tmp_path / precision
            sets = [*EACH[case], f"{key}={precision}"]
            run(load_recipe(recipe(tmp_path), sets), output=folder)
            assert seen == {True: {precision == "bf16"}, False: {False}}
            seen[True].clear()
            said = {event["precision"] for event in events(folder, "calibration")}
            assert said == {precision}
            found[precision] = load_file(folder / "model.safetensors")
        run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "again")
    finally:
        handle.remove()
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in found["bf16"].items())


@pytest.mark.parametrize("native", [True, False])
def test_auto_says_what_it_found(
    native: bool, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("effcompress.precision.multiplies_bf16", lambda _device: native)
    sets = ["prune.criterion=taylor", *ONCE, *FEW, "prune.measure.precision=auto"]
    run(load_recipe(recipe(tmp_path), sets), output=tmp_path / "out")
    what = "calibration in bf16: this device multiplies bf16 natively"
    if not native:
        what = "calibration in fp32: this device does not multiply bf16 natively"
    assert what in capsys.readouterr().err
    (said,) = events(tmp_path / "out", "calibration")
    assert said["precision"] == ("bf16" if native else "fp32")
