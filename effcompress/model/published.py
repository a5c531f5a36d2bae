"""The files of a folder that make up its model: what goes to a hub, and what a run keeps for
itself. Imports neither torch nor transformers.
"""

import re
from pathlib import Path

from effcompress.model.integrity import read_object, require_whole
from effcompress.model.scratch import RECORD

CARD = "README.md"
_INDEX = "model.safetensors.index.json"
_TEXT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|tekken|chat_template|(video_|image_)?(pre)?processor_config)\.json"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|.*\.(tiktoken|jinja)|(merges|vocab)\.txt"
)
_TEMPLATES = "additional_chat_templates"


def model_files(folder: Path) -> list[str]:
    """Returns the paths in a Hugging Face folder, relative to it, that loading the model needs, and
    ``RECORD``: configuration, weights, tokenizer with its templates, and the Python files that
    ``auto_map`` names. The card is not among them, nor is any other file of a run.

    Raises SourceError naming the first file that is missing or damaged.
    """
    weights = require_whole(folder)
    found = [*weights, *_code(folder)]
    found += [_INDEX] if (folder / _INDEX).exists() else []
    found += [file.name for file in folder.iterdir() if _TEXT.fullmatch(file.name)]
    found += [RECORD] if (folder / RECORD).is_file() else []
    found += [f"{_TEMPLATES}/{file.name}" for file in (folder / _TEMPLATES).glob("*.jinja")]
    return sorted(name for name in set(found) if (folder / name).is_file())


def is_weights(name: str) -> bool:
    """Whether a path in a repository is a file of weights, or their index, as exports name them."""
    return re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors|" + re.escape(_INDEX), name) is not None


def _code(folder: Path) -> list[str]:
    """Returns the Python files whose classes the configurations of model and tokenizer name."""
    found: list[str] = []
    for name in ("config.json", "tokenizer_config.json"):
        named = (read_object(folder / name) or {}).get("auto_map")
        classes = named.values() if isinstance(named, dict) else ()
        flat = [one for each in classes for one in (each if isinstance(each, list) else [each])]
        # `other/repository--file.Class` names a file elsewhere.
        local = [one for one in flat if isinstance(one, str) and "--" not in one and "." in one]
        found += [f"{one.split('.')[0]}.py" for one in local]
    return found
