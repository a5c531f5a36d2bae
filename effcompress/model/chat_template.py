"""The chat template of a tokenizer by itself, as far as its files state it. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from effcompress.errors import first_line
from effcompress.model.integrity import read_object
from effcompress.model.source import template_folder
from effcompress.spec import ModelSpec


@contextmanager
def said_in_words() -> Iterator[None]:
    """Turns whatever a template raises, which is a program, into a ValueError of one line."""
    try:
        yield
    except TemplateSyntaxError as error:
        said = f"the template itself is wrong in line {error.lineno}: {error.message}"
        raise ValueError(said) from error
    except Exception as error:
        raise ValueError(first_line(error) or type(error).__name__) from error


@dataclass(frozen=True)
class ChatTemplate:
    """Writes conversations as the tokenizer does that its files belong to."""

    template: str
    special: Mapping[int, str]
    """Id -> text of each special token."""
    named: Mapping[str, str]
    """Texts of special tokens as templates call them: ``eos_token``, say."""

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """As ``TextTokenizer`` says."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template
        with said_in_words():
            found, _ = render(
                conversations=[[dict(turn) for turn in turns]],
                chat_template=self.template,
                add_generation_prompt=generation,
                **self.named,
            )
        return found[0]


def template_of(spec: ModelSpec) -> ChatTemplate | None:
    """Returns the template that a tokenizer on this machine uses; None where its files name none,
    or leave open which.
    """
    if (folder := template_folder(spec)) is None:
        return None
    stated = read_object(folder / "tokenizer_config.json") or {}
    if (text := _text(folder, stated.get("chat_template"))) is None:
        return None
    both = {**(read_object(folder / "special_tokens_map.json") or {}), **stated}
    named = {name: _word(value) for name, value in both.items() if name.endswith("_token")}
    added = (read_object(folder / "tokenizer.json") or {}).get("added_tokens") or ()
    special = {one["id"]: one["content"] for one in added if one.get("special")}
    return ChatTemplate(text, special, {k: v for k, v in named.items() if v})


def _text(folder: Path, stated: Any) -> str | None:
    for name in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    if isinstance(stated, list):
        stated = {one.get("name"): one.get("template") for one in stated}
    found = stated.get("default") if isinstance(stated, dict) else stated
    return found if isinstance(found, str) else None


def _word(value: Any) -> str:
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else ""
