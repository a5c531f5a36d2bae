"""What the source of a model says about itself beside its weights: license, languages, hub id.
Imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.cache import cache_root
from effcompress.model.integrity import read_manifest
from effcompress.model.published import CARD
from effcompress.model.source import converted_at, from_scratch, kind_of
from effcompress.spec import ModelSpec

_HUB = "https://huggingface.co/"
_OURS = "effcompress"
"""Tag of the cards that this package writes."""


@dataclass(frozen=True)
class SourceFacts:
    """Facts of a source model as model cards of the hub name them; None: not stated."""

    base_model: str | None = None
    """Hub id of the model that the weights come from."""
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()


def facts_of(spec: ModelSpec) -> SourceFacts:
    """Returns what the source of the weights states: the card beside them, or the metadata of a
    gguf file, as far as they are on this machine. Never uses the network.
    """
    kind = kind_of(spec)
    if kind == "random" or from_scratch(spec):
        return SourceFacts()
    if kind == "hub":
        card = hub.cached_file(str(spec.hub), spec.revision, CARD)
        return _of_card(card, base_model=str(spec.hub))
    if kind == "folder":
        return _of_card(Path(str(spec.folder)).expanduser() / CARD, base_model=None)
    try:
        told = (read_manifest(converted_at(spec, cache_root())) or {}).get("facts")
    except SourceError:  # the gguf file is gone; its conversion cannot be found without it
        return SourceFacts()
    return _made(told if isinstance(told, Mapping) else {})


def _of_card(card: Path | None, *, base_model: str | None) -> SourceFacts:
    """Reads the front matter of a model card. A card of this package also says where its own source
    is from; that of another model names what its weights were trained from, which is another one.
    """
    from huggingface_hub import ModelCard

    try:
        if card is None:
            raise FileNotFoundError
        said = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError, TypeError, YAMLError):
        return SourceFacts(base_model=base_model)
    stated = said.to_dict()
    tags = stated.get("tags")
    if base_model is None and isinstance(tags, list) and _OURS in tags:
        base_model = stated.get("base_model")
    return _made({**stated, "languages": stated.get("language"), "base_model": base_model})


def gguf_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that the ``general.*`` metadata of a gguf file states, as JSON values. Its
    ``base_model`` is the model that was converted, where the file says so.
    """
    own = ("general.source.repo_url", "general.source.huggingface.repository")
    repo = next((fields[key] for key in own if fields.get(key)), None)
    found = {
        "base_model": str(repo).removeprefix(_HUB) if repo else None,
        "license": fields.get("general.license"),
        "license_name": fields.get("general.license.name"),
        "license_link": fields.get("general.license.link"),
        "languages": fields.get("general.languages"),
    }
    return {key: value for key, value in found.items() if value}


def _made(said: Mapping[str, Any]) -> SourceFacts:
    """Takes the values that are of the right type; the others are as if not stated."""
    words = {
        key: value
        for key in ("base_model", "license", "license_name", "license_link")
        if isinstance(value := said.get(key), str) and value.strip()
    }
    if words.get("base_model", "").count("/") != 1:
        words.pop("base_model", None)
    spoken = said.get("languages")
    listed = [spoken] if isinstance(spoken, str) else spoken if isinstance(spoken, list) else []
    return SourceFacts(**words, languages=tuple(one for one in listed if isinstance(one, str)))
