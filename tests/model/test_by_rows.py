"""Loading by rows: the rows of all processes are the model, bit for bit, whatever the source."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress.distributed.rows import shard_rows
from effcompress.errors import SourceError
from effcompress.model import by_rows, suitability
from effcompress.model.load import LoadedModel, load
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.spec import ModelSpec
from tests.conftest import shape, stated
from tests.contract.zoo import config_of, sources

VOCAB = {"vocab_size": 262, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
DECLARED = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "phi3", "mixtral", "qwen3_moe", "gpt_oss")


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "SMALL", 0)


def config(model_type: str) -> dict[str, Any]:
    if model_type in sources():
        return {**config_of(model_type), **VOCAB}
    return {**shape("gqa_tied", model_type=model_type), **VOCAB}


def folder_of(model_type: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        built: Any = AutoConfig.for_model(**config(model_type))
        model: Any = AutoModelForCausalLM.from_config(built, dtype=torch.float32)
        for p in model.parameters():
            p.data.normal_(0, 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB")
    ByteTokenizer().save(folder)
    return folder


def in_parts(spec: ModelSpec, size: int, seed: int = 0) -> list[LoadedModel]:
    ranks = range(size)
    return [load(spec, seed=seed, rows_of=partial(shard_rows, rank=r, size=size)) for r in ranks]


def joined(parts: list[LoadedModel]) -> dict[str, Tensor]:
    names = dict(parts[0].module.named_parameters())
    assert all(set(part.rows) <= names.keys() for part in parts)
    found = {}
    for name, p in names.items():
        assert p.is_meta == (name in parts[0].rows), name
        found[name] = torch.cat([part.rows[name] for part in parts]) if p.is_meta else p.detach()
        assert found[name].shape == p.shape
    return found


def assert_same(parts: list[LoadedModel], whole: LoadedModel) -> None:
    wanted = dict(whole.module.named_parameters())  # a tied parameter once
    found = joined(parts)
    assert found.keys() == wanted.keys()
    for name, p in wanted.items():
        assert torch.equal(found[name], p.detach()) and found[name].dtype == torch.float32, name
    for part in parts:
        assert all(part.module.get_parameter(n).is_meta for n in wanted if wanted[n].dim())
        assert part.config == whole.config and part.dtype == whole.dtype
        for name, buffer in whole.module.named_buffers():
            assert torch.equal(part.module.get_buffer(name), buffer), name
        held = [t.untyped_storage().nbytes() for t in part.rows.values()]
        assert held == [t.nbytes for t in part.rows.values()]  # no view of a whole one
        kept: Any = part.module
        assert kept.generation_config.to_dict() == whole.module.generation_config.to_dict()  # type: ignore[union-attr]
        assert kept.training


@pytest.mark.parametrize("model_type", sorted({*sources(), *DECLARED}))
def test_rows_of_files_are_the_model(model_type: str, tmp_path: Path) -> None:
    """Tied and untied, experts that are merged from a list or kept so, several files."""
    spec = ModelSpec(folder=folder_of(model_type, tmp_path), tokenizer="bytes")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert_same(in_parts(spec, 3), load(spec))


@pytest.mark.parametrize("model_type", sorted({*sources(), *DECLARED}))
def test_rows_of_random_weights_are_the_model(model_type: str) -> None:
    spec = ModelSpec(random=True, shape=stated(config(model_type)), tokenizer="bytes")
    state = torch.get_rng_state()
    parts = in_parts(spec, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(parts, load(spec, seed=5))


def test_files_of_another_type(tmp_path: Path) -> None:
    spec = ModelSpec(folder=folder_of("llama", tmp_path, torch.bfloat16), tokenizer="bytes")
    parts = in_parts(spec, 2)
    assert parts[0].dtype == "bfloat16"
    assert_same(parts, load(spec))


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_matrix_that_is_stored_twice(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers ties the two where their values agree, and does not where they differ (here: in
    a place that the check of the folder does not look at).
    """
    monkeypatch.setattr(suitability, "_PROBED", 8)
    folder_of("llama", tmp_path)
    file = next(
        f for f in tmp_path.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(f)
    )
    held = {name: t.clone() for name, t in load_file(file).items()}
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    held["lm_head.weight"][3, 5] += 0.0 if same else 1.0
    for other in tmp_path.glob("*.safetensors"):
        held |= load_file(other) if other != file else {}
        other.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    spec = ModelSpec(folder=tmp_path, tokenizer="bytes")
    parts, whole = in_parts(spec, 2), load(spec)
    assert ("lm_head.weight" in dict(whole.module.named_parameters())) is not same
    assert_same(parts, whole)


def test_weights_that_do_not_fit_are_refused_as_ever(tmp_path: Path) -> None:
    folder_of("llama", tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace('"intermediate_size": 40', '"intermediate_size": 44')
    )
    spec = ModelSpec(folder=tmp_path, tokenizer="bytes")
    with pytest.raises(SourceError, match="mismatched keys") as whole:
        load(spec)
    with pytest.raises(SourceError, match="mismatched keys") as parts:
        in_parts(spec, 2)
    assert str(parts.value) == str(whole.value)


class Chained(nn.Module):
    """Draws a matrix, another, and then one number of the first from all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8, bias=False)
        self.second = nn.Linear(6, 8, bias=False)
        with torch.no_grad():
            self.late(self.first.weight)

    def late(self, weight: Tensor) -> None:
        weight.mul_(weight.mean())


def test_what_needs_all_rows_is_not_drawn_by_rows() -> None:
    with pytest.raises(by_rows.NotByRows):
        by_rows.drawn(Chained, partial(shard_rows, rank=0, size=2))


class Scaled(Chained):
    """Changes a matrix that was drawn before, row by row."""

    def late(self, weight: Tensor) -> None:
        weight.mul_(0.5).clamp_(-0.1, 0.1)
        weight[2:5].zero_()


def test_what_needs_own_rows_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = Scaled()
    for rank in range(3):
        torch.manual_seed(0)
        module, rows = by_rows.drawn(Scaled, partial(shard_rows, rank=rank, size=3))
        assert module.first.weight.is_meta
        for name, p in whole.named_parameters():
            assert torch.equal(rows[name], p.detach()[shard_rows(8, rank, 3)]), name


def test_one_parameter_at_a_time_has_memory() -> None:
    """Of eight matrices of equal size no more than one is whole while they are drawn."""
    whole: list[int] = []

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(8))
            for part in self.parts:
                nn.init.normal_(part.weight)
                sizes = [p.untyped_storage().nbytes() for p in self.parameters()]
                whole.append(sum(size > 0 for size in sizes))

    by_rows.drawn(Many, partial(shard_rows, rank=0, size=2))
    assert whole == [1] * 8
