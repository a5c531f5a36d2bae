"""The class and the weights of a multimodal model, into which its text model is put back."""

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from effcompress.model.integrity import require_whole
from effcompress.model.multimodal import roots_of, text_name
from effcompress.model.silence import quietly
from effcompress.types import Config, Shapes

_BESIDE = ("*processor*.json", "chat_template.*", "generation_config.json")
"""Files of a source that go with it as they are: what prepares images and conversations."""


def class_of_whole(config: Config) -> type:
    """Returns the configuration class of a multimodal model."""
    return type(AutoConfig.for_model(str(config["model_type"])))


def shapes_of_whole(config: Config) -> tuple[Shapes, Shapes]:
    """Returns parameter -> shape of a multimodal model with this configuration: of its text model,
    as that alone names them, without the output matrix; and of all other parts.

    Raises whatever its class raises that does not accept the configuration.
    """
    # Some classes take keys out of the mappings that they are given.
    fields = copy.deepcopy({key: value for key, value in config.items() if key != "model_type"})
    built = AutoConfig.for_model(str(config["model_type"]), **fields)
    with quietly(), torch.device("meta"):
        whole: Any = AutoModelForImageTextToText.from_config(built)
    decoder = whole.get_decoder()
    # Llama 4's is a causal language model itself.
    root = "" if hasattr(decoder, "lm_head") else "model."
    text = {f"{root}{name}": tuple(p.shape) for name, p in decoder.named_parameters()}
    inner = {id(p) for p in (*decoder.parameters(), *_head(whole))}
    others = {name: tuple(p.shape) for name, p in whole.named_parameters() if id(p) not in inner}
    return text, others


def _head(whole: Any) -> Iterable[Tensor]:
    head = whole.get_output_embeddings()
    return () if head is None else head.parameters()


def parts_of_whole(source: Path, text: Iterable[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns what the weights of a text model, by its own names, are called in the multimodal
    model in ``source`` (a tied output matrix is not stored), and all other weights of that model.
    These are read from the mapped files when they are used.
    """
    headers = require_whole(source)
    roots = roots_of(name for tensors in headers.values() for name in tensors)
    others: dict[str, Tensor] = {}
    for file, tensors in headers.items():
        held: Any = safe_open(source / file, framework="pt")
        others |= {name: held.get_tensor(name) for name in tensors if not text_name(name)}
    names: dict[str, str] = {}
    for name in text:
        root = next(root for root in ("model.", "lm_head.") if name.startswith(root))
        if root in roots:
            names[name] = roots[root] + name.removeprefix(root)
    return names, others


def copy_beside(source: Path, folder: Path) -> None:
    """Copies the files that prepare a multimodal model's inputs."""
    for pattern in _BESIDE:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
