"""Weights written one tensor at a time: the files hold what transformers itself would store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from effcompress import fault
from effcompress.checkpoint import Piece, export, files, proof
from effcompress.errors import RunError
from effcompress.export.weights import Weights, unchanged
from effcompress.export.write import save
from effcompress.model.modeling_pruned import untie
from effcompress.model.silence import quietly
from effcompress.processes import memory_available
from tests.conftest import shape, tiny, tokens
from tests.contract.zoo import config_of, sources

DECLARED = ("llama", "gemma2", "gpt2", "phi3", "mixtral", "qwen3_moe", "gpt_oss", "glm4_moe")


def config(model_type: str) -> dict[str, Any]:
    known = model_type in sources()
    return config_of(model_type) if known else shape("gqa_tied", model_type=model_type)


def read(folder: Path) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as held:
            assert held.metadata() == {"format": "pt"}
            found |= {name: held.get_tensor(name).clone() for name in held.keys()}  # noqa: SIM118
    return found


def weights_of(model: Any) -> Weights:
    stored = model.state_dict().keys()
    held = {name: b for name, b in model.named_buffers() if name in stored}
    return Weights({n: unchanged(t) for n, t in (*model.named_parameters(), *held.items())})


@pytest.mark.parametrize("model_type", sorted({*sources(), *DECLARED}))
def test_as_transformers_stores_it(model_type: str, tmp_path: Path) -> None:
    """Names, types and bits; for some classes a matrix per expert in place of one for all."""
    built: Any = AutoConfig.for_model(**config(model_type))
    with quietly(), torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(built)
        with torch.device("meta"):
            skeleton: Any = AutoModelForCausalLM.from_config(built)
        skeleton.generation_config = model.generation_config
        model.save_pretrained(tmp_path / "theirs")
        save(skeleton, weights_of(model), lambda _: None, tmp_path / "ours")
    ours, theirs = read(tmp_path / "ours"), read(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    for name in ("config.json", "generation_config.json"):
        if (tmp_path / "theirs" / name).exists():
            assert (tmp_path / "ours" / name).read_text() == (
                tmp_path / "theirs" / name
            ).read_text()


def pieces(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Piece]:
    held = {f"t{k}": torch.randn(n).to(dtype) for k, n in enumerate(sizes)}
    return [
        Piece({name: tuple(t.shape)}, {name: dtype}, lambda _, n=name, t=t: {n: t})
        for name, t in held.items()
    ]


def test_large_models_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the stated size, with an index; a tensor that is larger has a file of its own."""
    given = pieces(10, 20, 100, 5, 5)
    hashes = files.write_files(tmp_path, given, most=200)
    names = [f"model-{k:05d}-of-00003.safetensors" for k in (1, 2, 3)]
    assert [*hashes] == names
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * 140}
    where = {"t0": names[0], "t1": names[0], "t2": names[1], "t3": names[2], "t4": names[2]}
    assert index["weight_map"] == where
    for piece in given:
        for name, tensor in (piece.made(0) or {}).items():
            with safe_open(tmp_path / where[name], framework="pt") as held:
                assert torch.equal(held.get_tensor(name), tensor)


def test_types_of_several_widths_lie_at_multiples_of_their_width(tmp_path: Path) -> None:
    given = [
        *pieces(3, dtype=torch.bfloat16),
        *(Piece({n: (5,)}, {n: d}, lambda _, n=n, d=d: {n: torch.ones(5, dtype=d)})
          for n, d in {"a": torch.bool, "b": torch.float64, "c": torch.float32}.items()),
    ]  # fmt: skip
    files.write_files(tmp_path, given)
    head = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
    begins = {name: said["data_offsets"][0] for name, said in header.items() if name[0] != "_"}
    assert begins == {"b": 0, "c": 40, "t0": 60, "a": 66}
    assert read(tmp_path)["b"].dtype == torch.float64


def test_what_reads_back_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a bit, before the folder appears."""

    def spoil(name: str) -> None:
        if name == "export.file":
            file = next(tmp_path.rglob("model.safetensors"))
            data = bytearray(file.read_bytes())
            data[-3] ^= 1
            file.write_bytes(data)

    monkeypatch.setattr(fault, "point", spoil)
    with pytest.raises(RunError, match="t0 reads back as something else"):
        export(pieces(50), lambda _: None, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_files_of_an_earlier_export_go(tmp_path: Path) -> None:
    """Transformers would read an old model.safetensors in place of new files with an index."""
    for first, second in ((1, 200), (200, 1)):
        (tmp_path / "own.safetensors").write_text("a user's")
        for most in (first, second):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(files.write_files, "__defaults__", (files.ALONE, most))
                export(pieces(10, 10), lambda _: None, tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        alone = {"model.safetensors"} if second == 200 else {files.INDEX}
        several = {f"model-0000{k}-of-00002.safetensors" for k in (1, 2)} if second == 1 else set()
        assert left == {"own.safetensors", *alone, *several}


@pytest.mark.fresh_process
def test_a_model_that_does_not_fit_is_proven_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh process, with a tied and with an own output matrix; a wrong weight is found."""
    ids = tokens(2, 10)
    for tied in (True, False):
        model: Any = tiny("gqa_tied" if tied else "gqa_untied")
        with torch.device("meta"):
            skeleton: Any = type(model)(model.config)
        save(skeleton, weights_of(model), lambda _: None, tmp_path)
        size = sum(p.nbytes for p in model.parameters())
        monkeypatch.setenv(proof.BY_LAYERS, str(size // 4))
        found = proof.prove(tmp_path, model, ids)
        assert found.by_layers and found.generated == 2
        assert found.max_logit_difference <= found.tolerance
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] += 1.0
    with pytest.raises(RunError, match="logits differ"):
        proof.prove(tmp_path, model, ids)


def test_when_that_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights in fp32 are more than half of the memory that can be had."""
    model = tiny("gqa_tied")
    size = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(proof.processes, "memory_available", lambda: 2 * size)
    assert proof.room_for(model) is None
    monkeypatch.setattr(proof.processes, "memory_available", lambda: 2 * size - 1)
    assert proof.room_for(model) == proof.LEAST
    monkeypatch.undo()
    assert memory_available() > 0


def test_an_untied_output_matrix_is_stored(tmp_path: Path) -> None:
    """As a rotation leaves it: the class is tied no more."""
    model: Any = tiny("gqa_tied")
    untie(model)
    with torch.device("meta"):
        skeleton: Any = type(model)(model.config)
    save(skeleton, weights_of(model), lambda _: None, tmp_path)
    assert "lm_head.weight" in read(tmp_path)
