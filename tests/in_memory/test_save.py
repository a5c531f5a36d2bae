"""A model of a script is saved as a run saves its own, and proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import effcompress as ec
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import tiny, tokens

FORMS: dict[str, tuple[dict[str, list[int]], str]] = {
    "uniform": ({f"ffn.{i}": [0, 3 + i] for i in range(3)} | {"hidden": list(range(6))}, "llama"),
    "padded": ({"ffn.1": [4, 5, 6]}, "llama"),
    "exact": ({"ffn.1": [4, 5, 6], "mlp_block.2": [0]}, "pruned_llama"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plan, container = FORMS[form]
    model = tiny("gqa_tied", dtype=dtype)
    ec.cut(model, plan)
    saved = ec.save(model, tmp_path / "out", form=form)
    assert (saved.form, saved.container, saved.folder) == (form, container, tmp_path / "out")
    assert saved.max_logit_difference < 1e-4 and saved.bytes > 10_000
    loaded = AutoModelForCausalLM.from_pretrained(
        saved.folder, trust_remote_code=True, dtype="auto"
    )
    assert loaded.dtype == dtype
    ids = tokens()
    with torch.no_grad():
        found, wanted = (m.eval()(ids, use_cache=False).logits for m in (loaded, model))
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 0.2}
    torch.testing.assert_close(found, wanted, **close)


@pytest.mark.fresh_process
def test_in_a_fresh_process_with_a_tokenizer(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "words")
    words = AutoTokenizer.from_pretrained(tmp_path / "words")
    model = tiny("gqa_tied", vocab_size=258)
    ec.prune(model, words("some text of a script", return_tensors="pt"), keep=0.8)
    saved = ec.save(model, tmp_path / "out", tokenizer=words)
    assert saved.form == "uniform"
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("abc")["input_ids"] == words("abc")["input_ids"]


def test_save_pretrained_does_the_same_for_a_uniform_shape(tmp_path: Path) -> None:
    """Also where hidden channels went: the epsilon of the norms is in the configuration."""
    model = tiny("gqa_untied")
    ec.prune(model, tokens(3), shape={"hidden": 40, "ffn": 30, "attention": 2})
    assert model.config.rms_norm_eps != 1e-6
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens()
    with torch.no_grad():
        found, wanted = (m.eval()(ids, use_cache=False).logits for m in (loaded, model))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "kind", "what"),
    [
        ({"form": "padded", "cut": {}}, None, ""),
        ({"form": "uniform", "cut": {"ffn.0": [1]}}, ec.RunError, "layers differ"),
        ({"form": "unifirm", "cut": {}}, ec.SourceError, "no form 'unifirm'"),
    ],
)
def test_forms_that_cannot_be(given: dict[str, Any], kind: Any, what: str, tmp_path: Path) -> None:
    model = tiny("gqa_untied")
    if given["cut"]:
        ec.cut(model, given["cut"])
    if kind is None:
        assert ec.save(model, tmp_path, form=given["form"]).params == 44_208
        return
    with pytest.raises(kind, match=what):
        ec.save(model, tmp_path, form=given["form"])
    assert not (tmp_path / "config.json").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ec.SourceError, match="a file, not a folder"):
        ec.save(tiny(), tmp_path / "file")
