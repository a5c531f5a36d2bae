"""Load an exported folder as any user would, and write down what the model says.

Run as a script in a fresh, isolated process: ``python -I prove.py stock FOLDER INPUT OUTPUT`` (more
such triples may follow). The script imports transformers and nothing of effcompress, and exits with
an error if effcompress was imported all the same. With ``own-class`` instead of ``stock`` the class
in the folder may run (``trust_remote_code``).
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
    """Answers for one (folder, input, output) triple after the other."""
    for k in range(0, len(paths), 3):
        folder, source, target = paths[k : k + 3]
        ids_BT = load_file(source)["ids_BT"]
        found = answers(folder, ids_BT, own_class=classes == "own-class")
        ours = sorted(m for m in sys.modules if m.split(".")[0] == "effcompress")
        if ours:
            raise SystemExit(f"not a fresh process: {ours[0]} is imported")
        save_file(found, target)


def answers(folder: str, ids_BT: torch.Tensor, *, own_class: bool) -> dict[str, torch.Tensor]:
    """Returns the folder's logits for ``ids_BT`` [B, T] as ``logits_BTV``, and its 16 greedy tokens
    behind the first row, generated with the cache (``cached_T``) and without (``uncached_T``).

    Exits with an error if weights are missing, left over or of another shape.
    """
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
    # Greedy and nothing else: the folder's own generation settings (a repetition penalty, say)
    # would change the tokens that are compared.
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
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
