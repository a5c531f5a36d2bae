"""What transformers' classes accept, read from the text of its files, since importing them takes
seconds.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

ALWAYS = [
    "model_type",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "torch_dtype",
    "head_dim",
    "num_labels",
    "attn_implementation",
    "use_cache",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "quantization_config",
    "auto_map",
    "name_or_path",
]
"""Fields that every configuration accepts, although not every class declares them."""
_TABLE = re.compile(r"\b(wpe|embed_positions|pos_encoding) =|position_embeddings = nn\.Embedding")
"""A table of positions in the text of a modelling file."""

_PADDED = re.compile(r"vocab_size, [\w.]+, (self\.padding_idx|config\.pad_token_id)")
"""An embedding with a row for padding, in the text of a modelling file."""


def _root() -> Path:
    found = importlib.util.find_spec("transformers")
    return Path((found and found.origin) or "").parent


@functools.cache
def causal_models() -> Mapping[str, str]:
    """Returns ``model_type`` -> class of every causal language model of transformers."""
    text = (_root() / "models/auto/modeling_auto.py").read_text(encoding="utf-8")
    table = text.partition("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES = ")[2].partition("\n)")[0]
    return MappingProxyType(dict(re.findall(r'\("([^"]+)",\s+"([^"]+)"\)', table)))


def is_known(model_type: str) -> bool:
    """Whether transformers has modelling code for this ``model_type``."""
    return any(folder.is_dir() for folder in _folders(model_type))


def _folders(model_type: str) -> Iterator[Path]:
    name = model_type.replace("-", "_")
    if name.isidentifier() and len(name) < 100:
        yield from (_root() / "models" / n for n in (name, name.removesuffix("_text")))


@functools.cache
def fields_of(model_type: str) -> Mapping[str, object] | None:
    """Returns the fields of a configuration class with their defaults (None where a default is no
    literal, and of other names of a field); None for a ``model_type`` whose class is not found.
    """
    found = _configuration_class(model_type)
    if found is None:
        return None
    file, body = found
    return MappingProxyType(dict(_inherited(body.name, file, _fields)))


def _configuration_class(model_type: str) -> tuple[Path, ast.ClassDef] | None:
    for file in (f for folder in _folders(model_type) for f in folder.glob("configuration_*.py")):
        for body in _classes(file).values():
            if _fields(body).get("model_type") == model_type:
                return file, body
    return None


@dataclass(frozen=True)
class Stated:
    """What a configuration class says of a field: its type as it is written, and the least and the
    largest value where it names them.
    """

    type: str
    least: float | None = None
    most: float | None = None


@functools.cache
def types_of(model_type: str) -> Mapping[str, Stated]:
    """Returns field -> what its configuration class says of it, if that class holds values against
    their types; else, and for a class that is not found, nothing.
    """
    found = _configuration_class(model_type)
    if found is None or not _strict(found[1]):
        return MappingProxyType({})
    file, body = found
    return MappingProxyType(dict(_inherited(body.name, file, _stated)))


def _strict(body: ast.ClassDef) -> bool:
    return any(ast.unparse(node).partition("(")[0] == "strict" for node in body.decorator_list)


def _stated(body: ast.ClassDef) -> dict[str, Stated]:
    """Fields whose values the class looks at; the base of all classes looks at none of its own."""
    found: dict[str, Stated] = {}
    for node in body.body if body.name != "PreTrainedConfig" else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = Stated(ast.unparse(node.annotation), *_limits(node.value))
    return found


def _limits(value: ast.expr | None) -> tuple[float | None, float | None]:
    """Of a default that is written ``interval(min=0.0, max=1.0)(default=0.02)``."""
    made = value.func if isinstance(value, ast.Call) else None
    if not isinstance(made, ast.Call) or ast.unparse(made.func) != "interval":
        return None, None
    said: dict[str | None, Any] = {k.arg: _literal(k.value) for k in made.keywords}
    return said.get("min"), said.get("max")


@functools.cache
def activations() -> tuple[str, ...]:
    """Names of the activation functions that transformers has."""
    text = (_root() / "activations.py").read_text(encoding="utf-8")
    table = text.partition("\nACT2CLS = {")[2].partition("\n}")[0]
    return tuple(re.findall(r'^    "(\w+)":', table, re.MULTILINE))


@functools.cache
def looks_up_activation(model_type: str, field: str) -> bool:
    """Whether a model takes this field of its configuration for the name of an activation."""
    return f"ACT2FN[config.{field}]" in _modelling(model_type)


@functools.cache
def attentions() -> tuple[str, ...]:
    """Names of the implementations of attention that transformers has."""
    text = (_root() / "modeling_utils.py").read_text(encoding="utf-8")
    table = text.partition("class AttentionInterface")[2].partition("_global_mapping = {")[2]
    return ("eager", *re.findall(r'^ +"([\w|]+)":', table.partition("\n    }")[0], re.MULTILINE))


@functools.cache
def rotary_kinds() -> Mapping[str, frozenset[str]]:
    """Returns kind of rotary positions -> keys that it cannot do without."""
    text = (_root() / "modeling_rope_utils.py").read_text(encoding="utf-8")
    parts = re.split(r"\n    def _validate_(\w+)_rope_parameters\(", text)
    known = re.findall(r'^    "(\w+)": _compute_', text, re.MULTILINE)
    found: dict[str, frozenset[str]] = {}
    for kind, body in zip(parts[1::2], parts[2::2], strict=True):
        keys = re.search(r"required_keys = \{([^}]*)\}", body)
        if kind in ("default", *known):
            found[kind] = frozenset(re.findall(r'"(\w+)"', keys[1] if keys else ""))
    return MappingProxyType(found)


@functools.cache
def mentions(model_type: str, text: str) -> bool:
    """Whether a text stands anywhere in the code of a model type's classes."""
    files = [file for folder in _folders(model_type) for file in folder.glob("configuration_*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in files) + _modelling(model_type)
    return text in code


@functools.cache
def has_position_table(model_type: str) -> bool:
    """Whether a model looks positions up in a table, and so has no others than those in it."""
    if "rope_parameters" in (fields_of(model_type) or {}):
        return False
    text = _modelling(model_type)
    # `make_weights`: a table that is computed, and again for longer texts
    return bool(_TABLE.search(text)) and "make_weights" not in text


@functools.cache
def reads_for_logits(model_type: str, field: str) -> bool:
    """Whether the multimodal class of a model type reads a field of its text model, or its class
    cannot be found: what it computes logits by stands behind its text model's own class.
    """
    whole = re.search(r"^class \w+ForConditionalGeneration\(", _modelling(model_type), re.MULTILINE)
    return whole is None or field in whole.string[whole.start() :]


@functools.cache
def ignores_stored(model_type: str) -> bool:
    """Whether a model's class names weights that it leaves out when it loads a file."""
    left_out = re.findall(r"_keys_to_ignore_on_load_unexpected = (\w*)", _modelling(model_type))
    return any(value != "None" for value in left_out)


@functools.cache
def renames(model_type: str, part: str) -> bool:
    """Whether the names of a model's stored weights may hold ``part`` (``backbone.``), which its
    class renames when it loads them.
    """
    file = _root() / "conversion_mapping.py"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    table = text.partition(f'\n        "{model_type}": [\n')[2].partition("\n        ],")[0]
    return f'"{part}"' in table


@functools.cache
def has_padding_row(model_type: str) -> bool:
    """Whether a model's embedding keeps the row of its padding token at zero."""
    return bool(_PADDED.search(_modelling(model_type)))


def _modelling(model_type: str) -> str:
    files = [file for folder in _folders(model_type) for file in folder.glob("modeling_*.py")]
    return "".join(file.read_text(encoding="utf-8") for file in files)


@functools.cache
def _classes(file: Path) -> Mapping[str, ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _inherited(
    name: str, file: Path, read: Callable[[ast.ClassDef], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What ``read`` finds in a class and in its bases, which another file may define."""
    found: dict[str, Any] = {}
    if name == "PreTrainedConfig":
        return dict(read(_classes(_root() / "configuration_utils.py")[name]))
    if name not in _classes(file):
        other = rf"from \.+(\w+)\.(configuration_\w+) import [^\n]*\b{name}\b"
        stem = re.search(other, file.read_text(encoding="utf-8"))
        file = file.parent.parent / stem[1] / f"{stem[2]}.py" if stem else file
    body = _classes(file).get(name)
    if body is None:
        return found
    for base in body.bases:
        found |= _inherited(ast.unparse(base), file, read)
    return {**found, **read(body)}


def _fields(body: ast.ClassDef) -> dict[str, object]:
    """Class attributes, keys of ``attribute_map``, attributes and keywords that methods handle."""
    found: dict[str, object] = {}
    for node in body.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__"):
            found = {**dict.fromkeys(_handled(node)), **found}
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        value, stated = _literal(node.value), ast.unparse(getattr(node, "annotation", target))
        if target.id == "attribute_map" and node.value is not None:
            parts = ast.walk(node.value)
            found |= {str(n.value): None for n in parts if isinstance(n, ast.Constant)}
        elif "ClassVar" not in stated and not isinstance(value, dict | list):
            found[target.id] = value
    return found


def _handled(method: ast.FunctionDef) -> Iterator[str]:
    """Yields arguments of a method, its attributes, and the keywords that it takes out."""
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("kwargs."):
            yield from (str(n.value) for n in node.args if isinstance(n, ast.Constant))
        elif isinstance(node, ast.arg) and node.arg not in ("self", "kwargs"):
            yield node.arg


def _literal(value: ast.expr | None) -> object:
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
