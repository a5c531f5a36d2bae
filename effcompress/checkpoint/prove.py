"""Load a folder as any user would and write down what the model says.

Run as a script in a fresh, isolated process: ``python -I prove.py stock FOLDER INPUT OUTPUT`` (more
such triples may follow). It imports transformers and nothing of effcompress, and refuses to go on
if that was imported all the same. With ``own-class`` instead of ``stock`` the class that lies in
the folder may run.
INPUT and OUTPUT are safetensors files: ``ids_BT`` in; ``logits_BTV``, ``cached_T``, ``uncached_T``
out.
"""

import sys
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

NEW_TOKENS = 16


def main(classes: str, *paths: str) -> None:
    """Look at one folder after the other."""
    for k in range(0, len(paths), 3):
        look(*paths[k : k + 3], own_class=classes == "own-class")


def look(folder: str, source: str, target: str, *, own_class: bool) -> None:
    """Compute logits and greedy tokens with and without cache."""
    ids_BT = load_file(source)["ids_BT"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=own_class,
    )
    model, info = loaded
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"the folder does not load cleanly: {wrong}")
    AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=own_class)
    model.eval()
    # Greedy and nothing else: what the folder's generation config prefers is not what is proven.
    stop = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=stop)
    found = {}
    with torch.no_grad():
        found["logits_BTV"] = model(input_ids=ids_BT).logits.contiguous()
        for name, cache in (("cached_T", True), ("uncached_T", False)):
            out = model.generate(
                ids_BT[:1],
                attention_mask=torch.ones_like(ids_BT[:1]),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=cache,
                pad_token_id=0,
            )
            found[name] = out[0, ids_BT.shape[1] :].contiguous()
    ours = sorted(m for m in sys.modules if m.split(".")[0] == "effcompress")
    if ours:
        raise SystemExit(f"not a fresh process: {ours[0]} is imported")
    save_file(found, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
