"""Uniform exports under transformers 4, which vLLM, TGI and converters use: the same logits.

An older release is installed without its dependencies beside this environment, once per cache.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from effcompress.export.forms import form
from effcompress.export.older_keys import older_keys
from effcompress.export.write import write
from effcompress.model.tokenizer import ByteTokenizer
from tests.conftest import FAMILIES
from tests.export.test_forms import cut

RELEASES = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1")
SCRIPT = Path(__file__).with_name("in_transformers_4.py")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 3e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 5.0, 6.0, 7.0],
}
LAYERED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 5.0, 6.0, 7.0]}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "llama, base": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN}),
    "phi3, longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
    # As the files of Phi-3 say it.
    "phi3, old longrope": (
        "phi3",
        {
            **{"rope_scaling": {"type": "longrope", **FACTORS}, "rope_theta": 3e4},
            "original_max_position_embeddings": 16,
        },
    ),
    "llama, longrope": (
        "llama",
        {"rope_parameters": {**LONGROPE, "original_max_position_embeddings": 16}},
    ),
    # Not the ratio of positions, which is 8.
    "llama, longrope by 4": (
        "llama",
        {"rope_parameters": {**LONGROPE, "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "olmo2, linear": ("olmo2", {"rope_parameters": LINEAR}),
    "qwen3, dynamic": (
        "qwen3",
        {
            "rope_parameters": {**LINEAR, "rope_type": "dynamic"},
            "max_position_embeddings": 16,
        },
    ),
    "phi3, half": (
        "phi3",
        {"rope_parameters": {**YARN, "rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "gemma3, layered": ("gemma3_text", {"rope_parameters": LAYERED, "sliding_window": 8}),
    "gpt_neox, half": (
        "gpt_neox",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 4e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A uniform export of each variant, and what transformers 4 says of all of them."""
    root = tmp_path_factory.mktemp("exports")
    found = {name: root / name.replace(", ", "_") for name in VARIANTS}
    for name, folder in found.items():
        model_type, more = VARIANTS[name]
        # Phi-3's class wants as many factors as hidden size over heads says: no narrower one.
        change = "depth" if "longrope" in name else "both"
        pruned = cut(model_type, change, "uniform", **more)
        write(form(pruned, "uniform"), pruned, ByteTokenizer(), folder)
        ids_BT = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(0))
        np.save(folder / "ids.npy", ids_BT.numpy())
    environment = {**os.environ, "PYTHONPATH": str(transformers_4()), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, found.values())]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    return found


def transformers_4() -> Path:
    """The folder with the older release; two test processes install it once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "effcompress"
    folder = cache / "tests" / RELEASES[0].replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "complete"
        if not done.exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
            subprocess.run([*pip, "--target", str(folder), *RELEASES], check=True)
            done.touch()
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_logits(folders: dict[str, Path], name: str) -> None:
    folder = folders[name]
    said = json.loads((folder / "said.json").read_text())
    assert said["version"].startswith("4.57") and "error" not in said, said
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids_BT = torch.from_numpy(np.load(folder / "ids.npy"))
    with torch.no_grad():
        wanted = model(ids_BT).logits.numpy()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(np.load(folder / "logits.npy"), wanted, atol=2e-5, rtol=1e-4)
    assert said["ids"] == AutoTokenizer.from_pretrained(folder)("a b\u00e9").input_ids


@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_older_keys_say(folders: dict[str, Path], name: str) -> None:
    """They are there, and version 5 reads the same with them as without."""
    config = json.loads((folders[name] / "config.json").read_text())
    added = older_keys(config)
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert ("rope_theta" in added or "rotary_emb_base" in added) == ("rope_parameters" in config)
    assert {key: config[key] for key in added} == added
    # Phi-3 has this one in both versions.
    kept = {
        k: v
        for k, v in config.items()
        if k not in added.keys() - {"original_max_position_embeddings"}
    }
    kind = type(AutoConfig.from_pretrained(folders[name]))
    with_them, without = (kind.from_dict(dict(c)).to_dict() for c in (config, kept))
    for found in (with_them, without):
        found.get("rope_parameters", {}).pop("type", None)  # beside `rope_type`, which is read
    assert {k: v for k, v in with_them.items() if k in without} == without
    tokenizer = json.loads((folders[name] / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & {*config, *tokenizer}
