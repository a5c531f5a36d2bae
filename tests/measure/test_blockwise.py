"""Block by block is the same as the whole model, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from effcompress.errors import RunError
from effcompress.measure.blockwise import Block, blockwise, layers_of
from effcompress.measure.grams import Grams, Squares
from effcompress.model.families import family_of
from tests.conftest import FAMILIES, MIXTURES, tiny, tokens

WINDOWS: dict[str, dict[str, Any]] = {
    # Layers with and without a window get masks (and rotations) of their own.
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 2},
}
NO_SDPA = ("gemma2", "gpt_oss")
CASES = [(f, a) for f in FAMILIES for a in ("eager", "sdpa") if a == "eager" or f not in NO_SDPA]


def model(model_type: str, **more: Any) -> nn.Module:
    # Grouped kernels for experts take no fp64.
    dtype = torch.float32 if model_type in MIXTURES else torch.float64
    return tiny("gqa_tied", dtype, model_type=model_type, **WINDOWS.get(model_type, {}), **more)


def pattern(module: Any) -> str:
    return family_of(module.config.to_dict()).layer


def read_and_made(module: nn.Module, path: str, run: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What the module at ``path`` reads and makes while something runs."""
    read, made = [], []

    def after(_module: nn.Module, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        read.append((args[0] if args else kwargs["hidden_states"]).clone())
        made.append((out[0] if isinstance(out, tuple) else out).clone())

    handle = module.get_submodule(path).register_forward_hook(after, with_kwargs=True)
    run()
    handle.remove()
    return read, made


def whole(module: nn.Module, ids: Tensor) -> Any:
    """The full model on one sequence at a time."""

    def run() -> None:
        with torch.no_grad():
            for row in ids:
                module(input_ids=row[None], use_cache=False)

    return run


@pytest.mark.parametrize(("model_type", "attention"), CASES)
def test_blocks_read_and_make_what_they_do_in_the_model(model_type: str, attention: str) -> None:
    """Also once the blocks in front of them were changed."""
    module, ids = model(model_type), tokens(4)
    module.set_attn_implementation(attention)
    numbers = []
    for block in blockwise(module, pattern(module), ids):
        expected = read_and_made(module, block.path, whole(module, ids))
        found = read_and_made(module, block.path, block.run)
        assert len(found[0]) == len(found[1]) == 4
        for mine, full in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(mine, full)
        with torch.no_grad():
            for p in module.get_submodule(block.path).parameters():
                p.mul_(0.9)
        numbers.append(block.number)
    assert numbers == [0, 1, 2] == [layer.number for layer in layers_of(module, pattern(module))]


def test_masks_differ_between_the_layers_of_these_families() -> None:
    """Or the test above would show nothing for them."""
    for model_type in WINDOWS:
        types = model(model_type).config.layer_types
        assert len(set(types)) == 2, (model_type, types)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_linear_layers_and_what_is_none(model_type: str) -> None:
    module = model(model_type)
    for layer in layers_of(module, pattern(module)):
        params = dict(module.named_parameters())
        for name, dim in layer.linears.items():
            assert params[name].dim() == 2 and dim == (0 if model_type == "gpt2" else 1)
        mixture = layer.number in MIXTURES.get(model_type, ())
        kinds = {name.rsplit("mlp.")[-1] for name in layer.others}
        expected = {"gate.weight", "experts.gate_up_proj", "experts.down_proj"}
        if model_type == "gpt_oss":
            expected = {name.replace("gate.", "router.") for name in expected}
            expected |= {"experts.gate_up_proj_bias", "experts.down_proj_bias"}
        assert kinds == (expected if mixture else set())
        matrices = {n for n, p in params.items() if n.startswith(f"{layer.path}.") and p.dim() > 1}
        assert matrices == {*layer.linears, *layer.others}


@pytest.mark.parametrize(
    ("model_type", "groups"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"]]),
        ("gemma2", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"]]),
        ("gpt_neox", [["query_key_value"], ["dense"], ["dense_h_to_4h"]]),
        ("gpt2", [["c_attn"], ["c_proj"], ["c_fc"]]),
        ("mixtral", [["q_proj", "k_proj", "v_proj"], ["o_proj"]]),
    ],
)
def test_readers_of_one_tensor_in_order(model_type: str, groups: list[list[str]]) -> None:
    module = model(model_type)
    for block in blockwise(module, pattern(module), tokens(1)):
        found = [[name.split(".")[-2] for name in names] for names in block.readers()]
        assert [sorted(names) for names in found[:3]] == [sorted(names) for names in groups]
        assert len(found) == (2 if model_type == "mixtral" else 4)


def test_moments_are_those_of_the_whole_model() -> None:
    module, ids = model("llama"), tokens(5)
    for block in blockwise(module, pattern(module), ids):
        grams = Grams(module, block.linears, 1 << 62, 1.0)
        squares = Squares(module, block.linears)
        with grams.listening(), squares.listening():
            block.run()
        grams.close()
        squares.close()
        for name in block.linears:
            path = name.removesuffix(".weight")
            read = []
            handle = module.get_submodule(path).register_forward_pre_hook(
                lambda _m, args, read=read: read.append(args[0])
            )
            with torch.no_grad():
                module(input_ids=ids, use_cache=False)
            handle.remove()
            x_TI = read[0].flatten(0, -2)
            gram, square = grams.read(name), squares.read(name)
            assert gram is not None and square is not None
            torch.testing.assert_close(
                gram.double(), x_TI.T @ x_TI / len(x_TI), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(square.double(), x_TI.square().mean(0), rtol=1e-4, atol=1e-6)
        assert len(set(grams.owner.values())) == len(set(squares.owner.values())) == 4


def test_squares_are_silent_unless_asked() -> None:
    module = model("llama")
    squares = Squares(module, layers_of(module, pattern(module))[0].linears)
    whole(module, tokens())()
    assert squares.read("model.layers.0.mlp.down_proj.weight") is None and not squares.owner


def test_the_model_is_left_as_it_was() -> None:
    module = model("llama").train()
    before = {name: p.clone() for name, p in module.named_parameters()}
    for _ in blockwise(module, pattern(module), tokens()):
        assert not module.training
    assert module.training
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not any("forward" in vars(m) for m in module.modules())
    stopped = blockwise(module, pattern(module), tokens())
    next(stopped)
    stopped.close()
    assert module.training


def test_one_sequence_and_one_layer_are_enough() -> None:
    module = model("llama", num_hidden_layers=1)
    (block,) = blockwise(module, pattern(module), tokens(1))
    assert isinstance(block, Block) and len(block.linears) == 7


@pytest.mark.parametrize("isolated", [False, True])
def test_how_layers_are_called_is_seen_without_a_pass_of_the_whole_text(isolated: bool) -> None:
    module, ids, seen = model("llama"), tokens(4, 64), list[int]()
    module.get_submodule("model.layers.2.mlp.down_proj").register_forward_hook(
        lambda _m, args, _out: seen.append(args[0].shape[1])
    )
    positions = torch.arange(32).repeat(4, 2) if isolated else None
    block, *_ = blockwise(module, pattern(module), ids, positions)
    assert [n for n in seen if n < 64] == [32, 32], "a few tokens of two texts"
    assert len(block.inputs) == 4 and seen.count(64) == 0


def test_only_one_block_of_statistics_is_alive() -> None:
    """What the driver holds of the text: one tensor per sequence, replaced as it goes on."""
    module, ids = model("llama"), tokens(3)
    held = None
    for block in blockwise(module, pattern(module), ids):
        assert len(block._inputs) == 3
        assert held is None or block._inputs is held
        held = block._inputs


class Wide(nn.Linear):
    """A layer that takes more than the residual stream."""

    def forward(self, x: Tensor, _ids: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Model(nn.Module):
    """A stack that does more than hand on the residual stream."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed = nn.Embedding(61, 8)
        self.layers = nn.ModuleList(Wide(8, 8) for _ in range(2))

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, input_ids) if self.how == "text" else layer(x)
            x = x * 2 if self.how == "between" else x
        return x


@pytest.mark.parametrize(
    ("how", "said"),
    [("text", "depends on the text"), ("between", "does not read the output of the one before it")],
)
def test_models_that_cannot_be_taken_block_by_block_are_refused(how: str, said: str) -> None:
    module = Model(how)
    with pytest.raises(RunError, match=said):
        next(blockwise(module, "layers.{i}", tokens()))
    assert not any(m._forward_pre_hooks for m in module.modules())
