"""Holds the files of a tokenizer against what transformers takes from them, without importing it:
what it refuses is known before anything is loaded.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError, short
from effcompress.model.integrity import TEXT_LIMIT, opened, read_json, read_object

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_PLAN = "tokenizer.json"
_SPECIAL = re.compile(r"(bos|eos|unk|sep|pad|cls|mask)_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_SIDES = ("padding_side", "truncation_side")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_REMOVE = "mend that value, or take the key out"
Flaw = tuple[str, str]
"""What is wrong, and what to write instead."""


def require_tokenizer_files(folder: Path) -> None:
    """Raises SourceError naming the first value in the files of a tokenizer that transformers does
    not take, or with which it would read another tokenizer than the files say. One whose code comes
    with it reads them as it likes.
    """
    stated = read_object(folder / _CONFIG) or {}
    named = stated.get("auto_map")
    if isinstance(named, Mapping) and named.get("AutoTokenizer"):
        return
    for file, (what, fix) in _flaws(folder, stated):
        raise SourceError(f"{file}: {what}", where=str(folder), fix=fix)


def _flaws(folder: Path, stated: Mapping[str, Any]) -> Iterator[tuple[str, Flaw]]:
    # Files of earlier versions; where tokenizer_config.json lists tokens, they are not read.
    old = "added_tokens_decoder" not in stated
    beside = (read_object(folder / _MAP) or {}) if old else {}
    for file, values in ((_CONFIG, stated), (_MAP, beside)):
        for name, value in values.items():
            untagged = file == _MAP or name in beside
            if (flaw := _flaw(name, value, untagged=untagged)) is not None:
                yield file, flaw
    for text, value in ((read_object(folder / _ADDED) or {}) if old else {}).items():
        if type(value) is not int or value < 0:
            yield _ADDED, (f"the id of {text!r} is {value!r}", "write a whole number")
    for file in (*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*.jinja")):
        if file.is_file() and (said := _no_text(file)):
            yield file.name, (f"no UTF-8 text ({said})", "store it as UTF-8, or remove it")
    if (folder / _PLAN).exists():
        yield from ((_PLAN, flaw) for flaw in _of_plan(read_json(folder / _PLAN)))


def _flaw(name: str, value: Any, *, untagged: bool) -> Flaw | None:
    """What is wrong with a value of ``tokenizer_config.json`` or of ``special_tokens_map.json``, in
    which tokens that are mappings may be ``untagged``.
    """
    wrong, fix = False, _REMOVE
    if _SPECIAL.fullmatch(name):
        wrong, fix = value is not None and not _token(value, untagged), "write the token's text"
    elif name in _LISTS and value is not None:
        tokens = [*value.values()] if isinstance(value, dict) else value
        wrong = not isinstance(tokens, list) or not all(_token(one, untagged) for one in tokens)
        fix = "write a list of the tokens' texts"
    elif name == "added_tokens_decoder":
        wrong = not isinstance(value, dict) or not all(
            re.fullmatch(r"-?\d{1,9}", key) and isinstance(one, dict) and _token(one, True)
            for key, one in value.items()
        )
        fix = "write ids with a mapping for each ({content: TEXT, ...}), or take the key out"
    elif name in _SIDES:
        wrong, fix = value not in ("left", "right"), "write left or right, or take the key out"
    elif name == "model_max_length":
        wrong = value is not None and not isinstance(value, int | float)
        fix = "write a number, or take the key out"
    elif name == "tokenizer_class":
        wrong, fix = not isinstance(value, str | None), "write the name of a class"
    elif name == "split_special_tokens":
        wrong, fix = not isinstance(value, bool), "write true or false"
    elif name in ("model_input_names", "init_inputs"):
        wrong, fix = not isinstance(value, list), "write a list, or take the key out"
    elif name == "auto_map":
        wrong = not isinstance(value, dict) and not (isinstance(value, list) and len(value) > 1)
    return (f"{name} is {short(repr(value))}", fix) if wrong else None


def _token(value: Any, untagged: bool) -> bool:
    """Whether this is a token: its text, or a mapping with it."""
    if not isinstance(value, dict):
        return isinstance(value, str)
    right = all(isinstance(value.get(flag, False), bool) for flag in _FLAGS)
    return right and isinstance(value.get("content", ""), str) and (untagged or "__type" in value)


def _no_text(file: Path) -> str:
    with opened(file) as stream:
        data = stream.read(TEXT_LIMIT)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return str(error)
    return ""


def _of_plan(plan: Any) -> Iterator[Flaw]:
    """What a ``tokenizer.json`` states that the library takes and cannot use."""
    model, last = (plan.get(key) for key in ("model", "post_processor"))
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        twice = next((i for i, n in Counter(map(repr, words.values())).items() if n > 1), None)
        if twice is not None:
            first, second = [word for word, i in words.items() if repr(i) == twice][:2]
            yield f"{first!r} and {second!r} have the same id, {twice}", "give one of them another"
    steps = last.get("processors") if isinstance(last, dict) else None
    for step in steps if isinstance(steps, list) else [last]:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            known = step.get("special_tokens")
            for part in (*(step.get("single") or ()), *(step.get("pair") or ())):
                one = part.get("SpecialToken") if isinstance(part, dict) else None
                name = one.get("id") if isinstance(one, dict) else None
                if name is not None and isinstance(known, dict) and name not in known:
                    what = f"its post_processor adds {name!r}, which its special_tokens do not list"
                    yield what, "add it there, or take it out of `single` and `pair`"
