"""Conversations: read from a row, written with the tokenizer's chat template, and the spans of text
that are the assistant's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from effcompress.errors import SourceError

Turn = Mapping[str, str]
"""A message: its ``role`` and its ``content``."""
ANSWERING = "assistant"
"""The role whose messages are learned."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNREAD = ("tool_calls", "function_call", "audio", "images")
"""Keys of a message that say something beside its content."""
Span = tuple[int, int]
"""Where a stretch of text begins and ends, in characters."""


def turns_of(value: object, where: str) -> tuple[Turn, ...]:
    """Reads the messages of a row's field; None has none. Raises ``SourceError`` for anything but a
    list of messages with a role and a text.
    """
    if value is not None and not isinstance(value, Sequence | str):
        value = str(type(value).__name__)
    if isinstance(value, str):
        raise SourceError(
            "a conversation is a list of messages, not text",
            where=where,
            fix='[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    return tuple(_turn(message, where) for message in value or ())


def _turn(message: object, where: str) -> Turn:
    role, content = None, None
    there = type(message).__name__
    if isinstance(message, Mapping):
        role, content = message.get("role"), message.get("content")
        there = ", ".join(f"{key}: {type(value).__name__}" for key, value in message.items())
    if not (isinstance(role, str) and isinstance(content, str)):
        raise SourceError(
            f"a message needs a `role` and a `content` that are text; here: {there}",
            where=where,
            fix="write each message as {role, content}, or leave the conversation out",
        )
    assert isinstance(message, Mapping)
    if _SURROGATE.search(content):
        what = "a message is not valid Unicode: it has half of a surrogate pair"
        raise SourceError(what, where=where, fix="take it out, or leave the conversation out")
    if unread := next((key for key in _UNREAD if message.get(key)), None):
        raise SourceError(
            f"a message has `{unread}`, which is not written: its text would be learned without",
            where=where,
            fix="write it into `content` as the model is to say it, or leave the conversation out",
        )
    return {"role": role, "content": content}


class Writer(Protocol):
    """What writes conversations: a tokenizer, or its template alone. ``special``: id -> text of
    each special token.
    """

    @property
    def special(self) -> Mapping[int, str]: ...

    def render(self, turns: Sequence[Turn], *, generation: bool) -> str:
        """As ``TextTokenizer`` says."""
        ...


def written(turns: Sequence[Turn], tokenizer: Writer, where: str) -> tuple[str, list[Span]]:
    """Returns a conversation as the tokenizer's chat template writes it, and the spans of the
    assistant's answers: behind the words that ask for one, up to its end token.

    Raises ``SourceError`` if the template refuses it or writes a beginning differently once more
    follows, or if a message spells a special token, which would end it early.
    """
    for number, turn in enumerate(turns, start=1):
        spelt = next((s for s in tokenizer.special.values() if s in turn["content"]), None)
        if spelt is not None:
            what = f"message {number} spells the special token {spelt}"
            raise SourceError(what, where=where, fix="take it out of the text")
    try:
        whole = tokenizer.render(turns, generation=False)
        spans: list[Span] = []
        for n, turn in enumerate(turns):
            if turn["role"] != ANSWERING:
                continue
            answered = tokenizer.render(turns[: n + 1], generation=False)
            if n:
                asked = tokenizer.render(turns[:n], generation=True)
            else:  # nothing asks for an answer that comes first
                asked = answered[: max(0, answered.find(turn["content"].strip()))]
            if not (answered.startswith(asked) and whole.startswith(answered)):
                raise SourceError(
                    f"the chat template writes messages 1 to {n + 1} differently once more "
                    "follows, so the tokens of the answer cannot be told apart",
                    where=where,
                    fix="use a template that only adds text, or write the pairs with `text:` and "
                    "`prompt:`",
                )
            spans.append((len(asked), max(len(asked), len(answered.rstrip()))))
            if turn["content"].strip() and spans[-1][0] == spans[-1][1]:
                what = f"the chat template does not write message {n + 1}, an answer"
                raise SourceError(what, where=where, fix="use a template that writes answers")
    except ValueError as error:
        raise SourceError(
            f"the chat template refuses this conversation: {error}",
            where=where,
            fix="change or remove it",
        ) from error
    return whole, spans
