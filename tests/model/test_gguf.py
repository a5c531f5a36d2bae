"""llama.cpp itself opens the files: its logits and its tokens are compared with transformers'."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from effcompress.errors import SourceError
from effcompress.model import gguf
from effcompress.model.gguf import LayerWidths, why_not, write_gguf
from effcompress.model.gguf_tokenizer import _LLAMA3
from effcompress.model.tokenizer import ByteTokenizer

FFN, HEADS, KV, HEAD, HIDDEN, ROWS = 40, 6, 3, 8, 54, 61
FULL = LayerWidths(FFN, HEADS, KV)
IDS = [3, 5, 1, 60, 22, 17, 9, 2, 33, 40]
READER = Path(__file__).parent / "read_by_llama_cpp.py"
TEXTS = [
    "Hello world, it's 2024!  x\n\n  y 12345 tail ",
    "na\u00efve caf\u00e9 \u2014 \u6f22\u5b57 \U0001f642\ttabs",
    "",
    " a  b   ",
    "don't DON'T 123,456.78 the theory of this thing",
]


def tiny(**more: Any) -> nn.Module:
    """A random model whose gains and biases are random too, so that forgetting one shows."""
    fields = {
        "model_type": "llama",
        "vocab_size": ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": 3,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": HEAD,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,  # large enough that a wrong one shows
        **more,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
        for p in model.parameters():
            p.data.uniform_(0.5, 1.5) if p.dim() == 1 else p.data.normal_(0, 0.2)
    return model.eval()


def write(
    path: Path,
    model: Any,
    layers: Sequence[LayerWidths] = (FULL,) * 3,
    tensors: dict[str, torch.Tensor] | None = None,
    folder: Path | None = None,
    dtype: gguf.DType = "F32",
    **config: Any,
) -> int:
    fields = {**model.config.to_dict(), **config}
    held = model.state_dict() if tensors is None else tensors
    hidden, eps = model.config.hidden_size, model.config.rms_norm_eps
    return write_gguf(path, fields, layers, hidden, eps, held, folder, dtype=dtype, name="Tiny")


def ask(path: Path, ids: list[int] = IDS, texts: Sequence[str] = ()) -> dict[str, Any]:
    """What llama.cpp says about a file."""
    answer = path.with_suffix(".json")
    question = json.dumps({"path": str(path), "ids": ids, "texts": list(texts)})
    command = [sys.executable, str(READER), str(answer)]
    done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(answer.read_text())


def difference(found: dict[str, Any], model: Any, ids: list[int] = IDS) -> float:
    """Largest logit difference, token by token and with the whole prompt at once."""
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    steps = (torch.tensor(found["steps"]) - expected).abs().max()
    return float(max(steps, (torch.tensor(found["last"]) - expected[-1]).abs().max()))


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
UNIFORM: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_parameters": LLAMA3_ROPE},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
}


@pytest.mark.parametrize("case", UNIFORM)
def test_uniform(case: str, tmp_path: Path) -> None:
    model = tiny(**UNIFORM[case])
    size = write(tmp_path / "m.gguf", model)
    assert size == (tmp_path / "m.gguf").stat().st_size
    assert [f.name for f in tmp_path.iterdir()] == ["m.gguf"]
    found = ask(tmp_path / "m.gguf")
    assert found["meta"]["general.architecture"] == "llama"
    assert difference(found, model) < 3e-5


def masked(model: Any, layers: Sequence[LayerWidths]) -> dict[str, torch.Tensor]:
    """The weights of the last units of every layer; the others are silenced in the model."""
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for i, w in enumerate(layers):
        layer, prefix = model.model.layers[i], f"model.layers.{i}"
        slots = w.heads // w.kv_heads if w.kv_heads else 0
        groups = range(KV - w.kv_heads, KV)
        heads = [g * (HEADS // KV) + s for g in groups for s in range(HEADS // KV)[-slots:]]
        q = torch.tensor([h * HEAD + c for h in heads for c in range(HEAD)], dtype=torch.long)
        kv = torch.tensor([g * HEAD + c for g in groups for c in range(HEAD)], dtype=torch.long)
        ffn = torch.arange(FFN - w.ffn, FFN)
        cut = {"q": (q, 0), "k": (kv, 0), "v": (kv, 0), "o": (q, 1)}
        cut |= {"gate": (ffn, 0), "up": (ffn, 0), "down": (ffn, 1)}
        for part, (kept, axis) in cut.items():
            name = f"{prefix}.{'self_attn' if part in 'qkvo' else 'mlp'}.{part}_proj.weight"
            whole = tensors.pop(name)
            if len(kept):
                tensors[name] = whole.index_select(axis, kept)
        for linear, kept in ((layer.self_attn.o_proj, q), (layer.mlp.down_proj, ffn)):
            gone = torch.ones(linear.in_features, dtype=torch.bool)
            gone[kept] = False
            linear.weight.data[:, gone] = 0
    return tensors


PRUNED = {
    "KV heads": ("deci", [(40, 6, 3), (33, 4, 2), (7, 2, 1)]),
    "query heads": ("deci", [(40, 6, 3), (33, 3, 3), (7, 2, 2)]),
    "first FFN gone": ("deci", [(0, 6, 3), (40, 6, 3), (40, 6, 3)]),
    "last FFN gone": ("deci", [(40, 6, 3), (40, 6, 3), (0, 4, 2)]),
    "all FFN gone": ("llama", [(0, 6, 3), (0, 6, 3), (0, 6, 3)]),
    "attention gone": ("deci", [(40, 6, 3), (30, 0, 0), (40, 6, 3)]),
    "first attention gone": ("deci", [(40, 0, 0), (30, 4, 2), (40, 6, 3)]),
    "last attention gone": ("deci", [(40, 6, 3), (30, 4, 2), (40, 0, 0)]),
    "all attention gone": ("deci", [(40, 0, 0), (30, 0, 0), (30, 0, 0)]),
    "first layer gone": ("llama", [(0, 0, 0), (30, 4, 2), (30, 4, 2)]),
    "last layer gone": ("deci", [(40, 6, 3), (30, 4, 2), (0, 0, 0)]),
    "one block left": ("llama", [(0, 0, 0), (0, 2, 1), (0, 0, 0)]),
}


@pytest.mark.parametrize("case", PRUNED)
def test_widths_per_layer(case: str, tmp_path: Path) -> None:
    architecture, widths = PRUNED[case]
    layers = [LayerWidths(*w) for w in widths]
    model = tiny()
    whole = ask_expected(model)
    tensors = masked(model, layers)
    write(tmp_path / "m.gguf", model, layers, tensors)
    found = ask(tmp_path / "m.gguf")
    assert found["meta"]["general.architecture"] == architecture
    assert difference(found, model) < 3e-5
    assert (ask_expected(model) - whole).abs().max() > 0.1, "the case does not prune anything"


def ask_expected(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits


@pytest.mark.parametrize("widths", [(40, 6, 3), (33, 4, 2)])
def test_f16(widths: tuple[int, int, int], tmp_path: Path) -> None:
    """Against a model of the rounded weights: llama.cpp also rounds what they are multiplied by,
    to 11 bits.
    """
    model = tiny()
    layers = [FULL, LayerWidths(*widths), FULL]
    tensors = masked(model, layers)
    small = write(tmp_path / "m.gguf", model, layers, tensors, dtype="F16")
    for p in model.parameters():
        p.data = p.data.half().float() if p.dim() > 1 else p.data
    found = ask(tmp_path / "m.gguf")
    assert difference(found, model) < 3e-2
    assert found["meta"]["general.file_type"] == "1"
    stored = {t.name: t for t in GGUFReader(tmp_path / "m.gguf").tensors}
    gain, matrix = stored["blk.1.ffn_norm.weight"], stored["blk.1.ffn_down.weight"]
    assert (gain.tensor_type.name, matrix.tensor_type.name) == ("F32", "F16")
    expected = tensors["model.layers.1.mlp.down_proj.weight"].half()
    assert torch.equal(torch.from_numpy(matrix.data.copy()), expected)
    assert small < write(tmp_path / "wide.gguf", model, layers, tensors)


def test_a_wrong_epsilon_or_order_would_show(tmp_path: Path, monkeypatch) -> None:
    model = tiny()
    fields = model.config.to_dict()
    state = model.state_dict()
    write_gguf(
        tmp_path / "e.gguf", fields, [FULL] * 3, HIDDEN, 1e-6, state, None, dtype="F32", name=""
    )
    assert difference(ask(tmp_path / "e.gguf"), model) > 1e-4
    monkeypatch.setattr("effcompress.model.gguf_tensors.interleaved", lambda entry, heads: entry)
    write(tmp_path / "o.gguf", model)
    assert difference(ask(tmp_path / "o.gguf"), model) > 1e-2


def test_the_head_size_is_read_from_the_weights(tmp_path: Path) -> None:
    model = tiny()
    write(tmp_path / "m.gguf", model, head_dim=None)
    assert difference(ask(tmp_path / "m.gguf"), model) < 3e-5


@pytest.mark.parametrize(("window", "context"), [(32, "32"), (None, "128"), (4096, "128")])
def test_context_ends_with_the_sliding_window(window, context: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", tiny(model_type="mistral", sliding_window=window))
    assert ask(tmp_path / "m.gguf")["meta"]["llama.context_length"] == context


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "qwen3"}, "llama and mistral"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "dynamic"),
        ({"partial_rotary_factor": 0.5}, "rotates"),
    ],
)
def test_what_cannot_be_written_is_said(config: dict, word: str, tmp_path: Path) -> None:
    model = tiny()
    assert why_not(model.config.to_dict()) == ""
    assert word in why_not({**model.config.to_dict(), **config})
    with pytest.raises(SourceError, match=word):
        write(tmp_path / "m.gguf", model, **config)
    assert not list(tmp_path.iterdir())


def test_weights_and_widths_must_agree(tmp_path: Path) -> None:
    model = tiny(tie_word_embeddings=False)
    state = model.state_dict()
    layers = [FULL, FULL, LayerWidths(0, HEADS, KV)]
    with pytest.raises(SourceError, match=r"layers\.2\.mlp.*has no place"):
        write(tmp_path / "m.gguf", model, layers)
    layers = [FULL, FULL, LayerWidths(39, HEADS, KV)]
    with pytest.raises(SourceError, match=r"\[40, 54\], the widths say \[39, 54\]"):
        write(tmp_path / "m.gguf", model, layers)
    for flaw in (LayerWidths(40, 6, 0), LayerWidths(40, 5, 3), LayerWidths(-1, 6, 3)):
        with pytest.raises(SourceError, match="layer 1"):
            write(tmp_path / "m.gguf", model, [FULL, flaw, FULL])
    with pytest.raises(SourceError, match="no layer is left"):
        write(tmp_path / "m.gguf", model, [LayerWidths(0, 0, 0)] * 3)
    for name in ("lm_head.weight", "model.layers.1.self_attn.k_proj.weight"):
        with pytest.raises(SourceError, match=f"{name}: this weight is missing"):
            write(tmp_path / "m.gguf", model, tensors={k: state[k] for k in state if k != name})
    extra = {**state, "model.layers.0.self_attn.q_norm.weight": torch.ones(HEAD)}
    with pytest.raises(SourceError, match="q_norm"):
        write(tmp_path / "m.gguf", model, tensors=extra)
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_when_a_value_does_not_fit(tmp_path: Path) -> None:
    model = tiny()
    (tmp_path / "m.gguf").write_text("before")
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = 1e5
    with pytest.raises(SourceError, match=r"blk\.2\.ffn_down\.weight: F16.*\n  write F32"):
        write(tmp_path / "m.gguf", model, dtype="F16")
    assert [f.read_text() for f in tmp_path.iterdir()] == ["before"]
    write(tmp_path / "m.gguf", model)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(SourceError, match="output_norm"):
        write(tmp_path / "m.gguf", model)


def corpus() -> list[str]:
    text = "the theory of this thing that they then thought through 12 345 2024 it's don't "
    return [text[i:] + text[:i] + "\n" + TEXTS[0] for i in range(40)]


def byte_level(way: str) -> Tokenizer:
    rust = Tokenizer(models.BPE(ignore_merges=way == "llama-bpe"))
    regex = way != "llama-bpe"
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    steps: list[Any] = [last]
    if way == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), last]
    if way == "llama-bpe":
        from tokenizers import Regex

        steps = [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), last]
    rust.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else last
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
    )
    rust.train_from_iterator(corpus(), trainer)
    return rust


def sentencepiece() -> Tokenizer:
    """As Llama 2's: spaces are characters, what is unknown is bytes, all joins in token order."""
    rust = Tokenizer(models.BPE())
    rust.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials)
    rust.train_from_iterator(corpus(), trainer)
    vocab = dict(sorted(rust.get_vocab().items(), key=lambda item: item[1]))
    joins = [
        (text[:i], text[i:])
        for text in vocab
        if text not in specials
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab
    ]
    model = models.BPE(vocab=vocab, merges=joins, byte_fallback=True, unk_token="<unk>")
    rust = Tokenizer(model)
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    return rust


def saved(rust: Tokenizer, folder: Path, **more: Any) -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>", **more}
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("way", ["gpt-2", "smollm", "llama-bpe", "default"])
def test_tokenizers_agree(way: str, tmp_path: Path) -> None:
    rust = sentencepiece() if way == "default" else byte_level(way)
    texts = ["{% for m in messages %}{{ m.content }}{% endfor %}"]
    backend = saved(rust, tmp_path / "t", chat_template=texts[0])
    model = tiny(vocab_size=len(backend) + 3)
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)
    meta = found["meta"]
    assert found["tokens"] == [backend(text)["input_ids"] for text in TEXTS]
    assert max(map(len, found["tokens"])) > 20
    assert (meta["tokenizer.ggml.pre"], meta["tokenizer.chat_template"]) == (way, texts[0])
    assert meta["tokenizer.ggml.bos_token_id"] == str(backend.bos_token_id)
    assert meta["tokenizer.ggml.eos_token_id"] == str(backend.eos_token_id)


def test_bos_before_every_text(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    rust = byte_level("smollm")
    rust.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend = saved(rust, tmp_path / "t")
    model = tiny(vocab_size=len(backend))
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)["tokens"]
    assert found == [backend(text)["input_ids"] for text in TEXTS]
    assert found[0][0] == backend.bos_token_id


def test_bytes_as_tokens(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "t")
    write(tmp_path / "m.gguf", tiny(vocab_size=258), folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)
    assert found["tokens"] == [list(text.encode()) for text in TEXTS]


def lowercased() -> Tokenizer:
    rust = byte_level("smollm")
    rust.normalizer = normalizers.Lowercase()
    return rust


def split_otherwise() -> Tokenizer:
    rust = byte_level("smollm")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return rust


def joins_missing() -> Tokenizer:
    rust = sentencepiece()
    plan = json.loads(rust.to_str())
    made = ["".join(m) for m in plan["model"]["merges"]]
    twice = next(i for i, text in enumerate(made) if made.count(text) > 1)
    plan["model"]["merges"].pop(twice)
    return Tokenizer.from_str(json.dumps(plan))


def of_words() -> Tokenizer:
    words = {"<s>": 0, "</s>": 1, "a": 2}
    return Tokenizer(models.WordLevel(vocab=words, unk_token="<s>"))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lowercased, "Lowercase"),
        (split_otherwise, "no name there"),
        (joins_missing, "not merged"),
        (of_words, "WordLevel"),
    ],
)
def test_other_tokenizers_are_refused(make, word: str, tmp_path: Path) -> None:
    saved(make(), tmp_path / "t")
    model = tiny(vocab_size=600)
    with pytest.raises(SourceError, match=rf"{word}[\s\S]*without a tokenizer"):
        write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    saved(byte_level("gpt-2"), tmp_path / "t")
    with pytest.raises(SourceError, match=r"3\d\d tokens, the embedding 61 rows"):
        write(tmp_path / "m.gguf", tiny(), folder=tmp_path / "t")
