"""Loads exported folders with another transformers and saves the logits. Run as a script by
``test_transformers_4.py``: FOLDER... ; each gets a file ``logits.npy`` and the version read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

for name in sys.argv[1:]:
    folder = Path(name)
    said: dict[str, object] = {"version": transformers.__version__}
    ids = torch.from_numpy(np.load(folder / "ids.npy"))
    try:
        # Eager: other implementations cap scores otherwise in the two versions (Gemma 2).
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            np.save(folder / "logits.npy", model(ids).logits.numpy())
        said["ids"] = AutoTokenizer.from_pretrained(folder)("a b\u00e9").input_ids
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
        said["error"] = f"{type(error).__name__}: {error}"
    (folder / "said.json").write_text(json.dumps(said))
