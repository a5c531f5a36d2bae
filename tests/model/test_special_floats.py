"""Numbers that JSON has not, as transformers writes them into config.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM

from effcompress.export.older_keys import add_older_keys
from effcompress.model.integrity import read_json, tagged
from effcompress.network.axis_map import resolve_model

SIZES = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 32},
    **{"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    FalconH1ForCausalLM(FalconH1Config(**SIZES)).save_pretrained(tmp_path)
    assert '"__float__": "Infinity"' in (tmp_path / "config.json").read_text()
    return tmp_path


def test_a_folder_is_read_as_transformers_reads_it(folder: Path) -> None:
    config = read_json(folder / "config.json")
    assert config["time_step_limit"] == [0.0, math.inf]
    assert resolve_model(config).axes.family.name == "falcon_h1"


def test_they_are_written_back_as_they_were(folder: Path) -> None:
    before = FalconH1Config.from_pretrained(folder).to_dict()
    add_older_keys(folder, FalconH1Config)
    text = (folder / "config.json").read_text()
    assert '"__float__": "Infinity"' in text and "torch_dtype" in text

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(text, parse_constant=refuse)
    assert FalconH1Config.from_pretrained(folder).to_dict() == before


def test_each_of_them_and_nothing_else(tmp_path: Path) -> None:
    values = {"a": [math.inf, {"b": -math.inf}], "c": math.nan, "d": 1.5, "e": True, "f": "NaN"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tagged(values), allow_nan=False))
    found = read_json(path)
    assert math.isnan(found.pop("c"))
    assert found == {k: v for k, v in values.items() if k != "c"}
    path.write_text('{"a": {"__float__": "One"}, "b": {"__float__": [1]}, "c": {"__float__": 1}}')
    found = read_json(path)
    assert found["a"] == {"__float__": "One"} and found["b"] == {"__float__": [1]}
