"""Load an exported folder as any user would, and write down what the model says.

Run as a script in a fresh, isolated process: ``python -I prove.py stock FOLDER INPUT OUTPUT`` (more
such triples may follow). The script imports transformers and nothing of effcompress, and exits with
an error if effcompress was imported all the same. With ``own-class`` instead of ``stock`` the class
in the folder may run (``trust_remote_code``); with ``multimodal`` it is one for images and text.
With ``--most=BYTES`` behind the first word no more weights than these are in memory at a time: the
others are read from the files whenever a layer computes (accelerate's offloading), and fewer tokens
are generated.
INPUT and OUTPUT are safetensors files: ``ids_BT`` in; ``logits_BTV``, ``cached_T``, ``uncached_T``
and ``text_settings`` out.
"""

import gc
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # searching what imports make for garbage takes a fifth of their time
    gc.disable()

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)

if __name__ == "__main__":
    gc.freeze()
    gc.enable()

Classes = Literal["stock", "own-class", "multimodal"]
NEW_TOKENS = 16
FEW_TOKENS = 2
"""Of a model that is read layer by layer, as often as a token is generated."""
GENERATED = 2
"""So many of them are generated without the cache, too; the others follow from one forward pass."""


def main(classes: Classes, *paths: str) -> None:
    """Answers for one (folder, input, output) triple after the other."""
    most = None
    if paths and paths[0].startswith("--most="):
        most, paths = int(paths[0].partition("=")[2]), paths[1:]
    for k in range(0, len(paths), 3):
        folder, source, target = paths[k : k + 3]
        ids_BT = load_file(source)["ids_BT"]
        found = answers(folder, ids_BT, classes, most)
        ours = sorted(m for m in sys.modules if m.split(".")[0] == "effcompress")
        if ours:
            raise SystemExit(f"not a fresh process: {ours[0]} is imported")
        save_file(found, target)


def answers(
    folder: str, ids_BT: torch.Tensor, classes: Classes, most: int | None = None
) -> dict[str, torch.Tensor]:
    """Returns the folder's logits for ``ids_BT`` [B, T] as ``logits_BTV``, and its 16 greedy tokens
    behind the first row, generated with the cache (``cached_T``) and without (``uncached_T``);
    ``text_settings`` is the JSON of ``text_settings`` in bytes. ``most``: bytes of weights that are
    in memory at a time; with it two tokens are generated.

    Without the cache, two tokens are generated. The others are the choices of one forward pass over
    the row and ``cached_T``: where each is the next of these, they are what generating without the
    cache gives.

    Exits with an error if weights are missing, left over or of another shape.
    """
    with tempfile.TemporaryDirectory() as parts:  # for weights that are stored otherwise
        how: dict[str, Any] = {}
        if most is not None:
            how = {"device_map": "auto", "max_memory": {"cpu": most}, "offload_folder": parts}
        return _answers(folder, ids_BT, classes, NEW_TOKENS if most is None else FEW_TOKENS, how)


def _answers(
    folder: str,
    ids_BT: torch.Tensor,
    classes: Classes,
    new_tokens: int,
    how: dict[str, Any],
) -> dict[str, torch.Tensor]:
    own_class, auto = classes == "own-class", AutoModelForCausalLM
    if classes == "multimodal":
        auto = AutoModelForImageTextToText
    loaded: Any = auto.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=own_class,
        **how,
    )
    model, info = loaded
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"the folder does not load cleanly: {wrong}")
    own: Any = {"local_files_only": True, "trust_remote_code": own_class}
    words = Path(folder, "tokenizer_config.json").exists()  # a script may save without a tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, **own) if words else None
    told = text_settings(model.generation_config, tokenizer)
    model.eval()
    # Greedy and nothing else: the folder's own generation settings (a repetition penalty, say)
    # would change the tokens that are compared.
    stop = model.generation_config.eos_token_id
    row_BT = ids_BT[:1]
    model.generation_config = GenerationConfig(eos_token_id=stop)
    found = {"text_settings": torch.tensor([*json.dumps(told).encode()], dtype=torch.uint8)}
    with torch.no_grad():
        found["logits_BTV"] = model(input_ids=ids_BT).logits.contiguous()
        found["cached_T"] = generated(model, row_BT, new_tokens, cache=True)
        first_T = generated(model, row_BT, GENERATED, cache=False)
        rest_T = greedy(model, row_BT, found["cached_T"], stop)[GENERATED:]
        found["uncached_T"] = torch.cat([first_T, rest_T])
    return found


def generated(model: Any, row_BT: torch.Tensor, number: int, *, cache: bool) -> torch.Tensor:
    """Returns so many tokens that the model generates behind one row [1, T]."""
    out = model.generate(
        row_BT,
        attention_mask=torch.ones_like(row_BT),
        max_new_tokens=number,
        min_new_tokens=number,
        do_sample=False,
        use_cache=cache,
        pad_token_id=0,
    )
    return out[0, row_BT.shape[1] :].contiguous()


def greedy(
    model: Any, row_BT: torch.Tensor, said_T: torch.Tensor, stop: int | list[int] | None
) -> torch.Tensor:
    """Returns the most probable token behind one row [1, T], and behind each of the tokens
    ``said_T`` that follow it but the last; tokens at which generating would ``stop`` do not count.
    One forward pass without the cache. Equal to ``said_T``, it is the greedy continuation.
    """
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    whole_BT = torch.cat([row_BT, said_T[None, :-1]], dim=1)
    logits_TV = model(input_ids=whole_BT, use_cache=False).logits[0, row_BT.shape[1] - 1 :].float()
    logits_TV[:, stops] = -torch.inf  # they are not chosen in ``generate`` (``min_new_tokens``)
    return logits_TV.argmax(-1)


def text_settings(generation: Any, tokenizer: Any | None) -> dict[str, Any]:
    """Returns what a conversation depends on beside the weights, as JSON values: the generation
    config and, of a tokenizer of transformers, chat templates, special tokens and vocabulary.
    """
    plain = generation.to_dict() if generation is not None else {}
    kept = {
        k: v for k, v in plain.items() if k not in ("transformers_version", "_from_model_config")
    }
    found: dict[str, Any] = {"generation config": kept}
    if tokenizer is not None:
        template = tokenizer.chat_template
        if isinstance(template, Mapping) and [*template] == ["default"]:
            template = template["default"]  # as which it is stored
        words = json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
        found["tokenizer"] = {
            "chat template": template,
            "special tokens": tokenizer.special_tokens_map,
            "vocabulary": hashlib.sha256(words).hexdigest(),
        }
    return json.loads(json.dumps(found, sort_keys=True, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written; taking thousands of modules down takes a second
