"""Conversations: written with the tokenizer's template, learned where the assistant speaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from byte_tokenizer import ByteTokenizer

from effcompress import load_recipe, run
from effcompress.data.chat import written
from effcompress.errors import RecipeError, SourceError
from effcompress.model.tokenizer import ByteTokenizer as Bytes
from effcompress.model.tokenizer import open_tokenizer
from effcompress.runner.preflight import preflight
from effcompress.spec import DomainSpec
from tests.runner.toys import events, recipe

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
FORGETFUL = (  # thoughts of earlier answers are left out, as several published templates do
    "{% for m in messages %}<s>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('/think')[-1] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    found = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *found] if system else found


def chatty(template: str = TEMPLATE, **more: Any) -> ByteTokenizer:
    tokenizer = ByteTokenizer(**more)
    tokenizer.template = template
    return tokenizer


TALKS = [
    turns(f"why {i}?", f"because {i * 7}", "and?", f"so {i}", system="be kind") for i in range(40)
]


def file_of(tmp_path: Path, talks: list[Any], kind: str = "jsonl") -> Path:
    path, rows = tmp_path / f"talks.{kind}", [{"id": i, "m": t} for i, t in enumerate(talks)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def heard(corpus: Any, part: str = "train") -> tuple[str, str]:
    """All text of a domain, and what is learned of it; special tokens as they are spelt."""
    tokens = getattr(corpus._domains["d"], part).tokens.astype(int)
    spelt = {1: "<s>", 2: "</s>"}

    def text(ids: Any) -> str:
        return "".join(spelt.get(int(i)) or chr(int(i) - 3) for i in ids)

    return text([i if i >= 0 else ~i for i in tokens]), text(i for i in tokens if i >= 0)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_answers_are_learned_up_to_their_end_token(tmp_path: Path, make: Any, kind: str) -> None:
    spec = DomainSpec(**{kind: (file_of(tmp_path, TALKS, kind),)}, chat="m", holdout=0.2)
    corpus = make({"d": spec}, chatty(), train_tokens=10**5)
    whole, learned = heard(corpus)
    assert "<s>system\nbe kind</s>\n<s>user\nwhy " in whole
    numbers = [int(part.partition("<")[0]) for part in learned.split("because ")[1:]]
    assert len(numbers) > 20
    assert learned == "".join(f"because {n}</s>so {n // 7}</s>" for n in numbers)
    assert make.notices and not [n for n in make.notices if "BOS" in n]


def test_an_answer_without_an_end_token_gets_one(tmp_path: Path, make: Any) -> None:
    open_ended = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    spec = DomainSpec(jsonl=(file_of(tmp_path, TALKS),), chat="m", holdout=0.2)
    _, learned = heard(make({"d": spec}, chatty(open_ended), train_tokens=10**5))
    number = int(learned.split("because ")[1].partition("so")[0])
    assert learned.startswith(f"because {number}so {number // 7}</s>because ")


def test_the_bos_of_a_template_is_that_of_the_sequence(tmp_path: Path, make: Any) -> None:
    """Where the tokenizer puts one in front of texts, sequences begin with it already."""
    template = "<s>" + TEMPLATE.replace("<s>", "[").replace("</s>", "]</s>")
    spec = DomainSpec(jsonl=(file_of(tmp_path, TALKS),), chat="m", holdout=0.2)
    for adds_bos in (False, True):
        corpus = make({"d": spec}, chatty(template, adds_bos=adds_bos, fingerprint=str(adds_bos)))
        whole, _ = heard(corpus)
        assert whole.startswith("[system" if adds_bos else "<s>[system")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "a list of messages, not text"),
        (7, "a list of messages, not text"),
        ([{"from": "human", "value": "x"}], "here: from: str, value: str"),
        ([{"role": "user", "content": [{"type": "text"}]}], "here: role: str, content: list"),
        (["x"], "here: str"),
        (turns("a </s> b", "c"), "message 1 spells the special token </s>"),
    ],
)
def test_what_is_no_conversation_has_an_address(
    tmp_path: Path, make: Any, messages: Any, said: str
) -> None:
    spec = DomainSpec(jsonl=(file_of(tmp_path, [*TALKS[:2], messages]),), chat="m")
    with pytest.raises(SourceError, match=r"talks\.jsonl:3: ") as error:
        make({"d": spec}, chatty())
    assert said in str(error.value) and len(str(error.value).splitlines()) == 2


def test_a_template_that_changes_what_it_wrote_is_refused() -> None:
    tokenizer = chatty(FORGETFUL)
    one = turns("q", "hm/think a")
    assert written(one, tokenizer, "here")[0].endswith("hm/think a</s>\n")
    with pytest.raises(SourceError, match="here: the chat template writes messages 1 to 2 diff"):
        written([*one, *turns("q", "b")], tokenizer, "here")
    asks = "{% for m in messages %}{{ m.content }}{% endfor %}" + (
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    with pytest.raises(SourceError, match="cannot be told apart"):
        written(one, chatty(asks), "here")
    with pytest.raises(SourceError, match="refuses this conversation: no template"):
        written(one, ByteTokenizer(), "here")


def test_a_conversation_that_begins_with_an_answer() -> None:
    """Nothing asks for it: templates refuse to write an empty conversation."""
    strict = "{% if not messages %}{{ messages[0].role.x }}{% endif %}" + TEMPLATE
    said = [{"role": "assistant", "content": "hi"}, *turns("q", "a")]
    text, spans = written(said, chatty(strict), "here")
    assert [text[start:end] for start, end in spans] == ["hi</s>", "a</s>"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": "", "tool_calls": [{"name": "f"}]}, "a message has `tool_calls`, which is"),
        ({"content": "x", "function_call": {"name": "f"}}, "a message has `function_call`"),
        ({"content": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_what_would_be_lost_of_a_message(
    tmp_path: Path, make: Any, message: dict[str, Any], words: str
) -> None:
    talk = [*turns("q"), {"role": "assistant", **message}]
    spec = DomainSpec(jsonl=(file_of(tmp_path, [*TALKS[:2], talk]),), chat="m")
    with pytest.raises(SourceError, match=words) as error:
        make({"d": spec}, chatty())
    assert "talks.jsonl:3: " in str(error.value) and error.value.fix
    talk[-1] |= {"content": "fine", "tool_calls": None, "function_call": None}
    spec = DomainSpec(jsonl=(file_of(tmp_path, [*TALKS, talk]),), chat="m", holdout=0.2)
    make({"d": spec}, chatty())


def test_a_template_without_answers_is_refused() -> None:
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(SourceError, match="does not write message 2, an answer"):
        written(turns("q", "a"), chatty(silent), "here")


def test_conversations_without_messages_or_answers(tmp_path: Path, make: Any) -> None:
    talks = [*TALKS, [], None, *(turns(f"only asked {i}") for i in range(9))]
    spec = DomainSpec(jsonl=(file_of(tmp_path, talks),), chat="m", holdout=0.2)
    whole, learned = heard(make({"d": spec}, chatty(), train_tokens=10**5))
    assert "only asked" in whole and "asked" not in learned
    assert [n for n in make.notices if "2 of 51 training records were empty" in n]


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path, make: Any) -> None:
    spec = DomainSpec(jsonl=(file_of(tmp_path, TALKS),), chat="m")
    with pytest.raises(SourceError, match=r"domains\.d\.chat: the tokenizer has no chat template"):
        make({"d": spec}, ByteTokenizer())


def test_another_template_is_another_cache(tmp_path: Path, make: Any) -> None:
    spec = DomainSpec(jsonl=(file_of(tmp_path, TALKS),), chat="m", holdout=0.2)
    one, two = (
        make({"d": spec}, chatty(t)).fingerprint for t in (TEMPLATE, TEMPLATE.replace("\n", " "))
    )
    assert one != two


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer of transformers, one token per byte, and a template."""
    folder = tmp_path / "words"
    Bytes().save(folder)
    template = TEMPLATE.replace("<s>", "<|bos|>").replace("</s>", "<|eos|>")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_offsets_and_special_tokens_of_transformers(words: Path) -> None:
    tokenizer = open_tokenizer(None, words, offline=True)
    assert tokenizer.special == Bytes.special == {256: "<|bos|>", 257: "<|eos|>"}
    assert tokenizer.stop_id == 257
    ((ids, at),) = tokenizer.offsets(["aé<|eos|>"], special=True)
    assert ids == [97, 0xC3, 0xA9, 257]
    assert [tuple(each) for each in at] == [(0, 1), (1, 2), (1, 2), (2, 9)]
    text = ["aé<|eos|>"]
    plain, by_hand = tokenizer.offsets(text, special=False), Bytes().offsets(text, special=False)
    assert plain[0][0] == by_hand[0][0] and [*map(tuple, plain[0][1])] == by_hand[0][1]
    assert tokenizer.encode(text) == [by_hand[0][0]]
    assert tokenizer.offsets([], special=False) == []
    said = tokenizer.render(turns("q"), generation=True)
    assert said == "<|bos|>user\nq<|eos|>\n<|bos|>assistant\n"


def test_a_run_on_conversations(tmp_path: Path, words: Path) -> None:
    path, talks = recipe(tmp_path), file_of(tmp_path, TALKS)
    domains = {"letters": None, "numbers": None, "d": {"jsonl": str(talks), "chat": "m"}}
    domains["d"] |= {"holdout": "20%"}
    sets = ["prune=null", "train.tokens=1024", f"model.tokenizer={words}"]
    sets += [f"data.domains.{name}={json.dumps(value)}" for name, value in domains.items()]
    sets += ["data.sequence_length=64", "evaluate.prompt=why"]
    sets += ["model.shape.vocab_size=258"]
    loaded = load_recipe(path, sets)
    preflight(loaded, offline=True)
    run(loaded, output=tmp_path / "out")
    before, after = events(tmp_path / "out", "evaluation")
    assert after["domains"]["d"]["loss"] < before["domains"]["d"]["loss"]
    assert before["domains"]["d"]["tokens"] < 3 * 63
    for missing in ([s for s in sets if "tokenizer" not in s], sets):
        (words / "chat_template.jinja").unlink(missing_ok=True)
        with pytest.raises(RecipeError, match=r"d\.chat: the tokenizer has no chat template"):
            preflight(load_recipe(path, missing), offline=True)


USERS = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "talk", "said"),
    [
        (TEMPLATE, turns("only asked"), "has the role `assistant`, .*; roles here: user"),
        (TEMPLATE, [{"role": "model", "content": "x"}], "roles here: model"),
        (TEMPLATE, turns("a <|eos|>", "b"), r"message 1 spells the special token <\|eos\|>"),
        (USERS + TEMPLATE, turns("q", "a", system="s"), "refuses this conversation: users first"),
        ("{{ messages[0].foo.bar }}", turns("q", "a"), "refuses this conversation: 'dict object'"),
        ("{% for", turns("q", "a"), "the template itself is wrong in line 1"),
        ("{% for i in range(10**9) %}{% endfor %}", turns("q", "a"), "Range too big"),
        ("{{ messages[0].content }}", turns("q", "a"), "does not write message 2"),
    ],
)
def test_check_writes_the_first_conversations(
    tmp_path: Path, words: Path, template: str, talk: list[Any], said: str
) -> None:
    """And `run` says the same, for it asks first."""
    (words / "chat_template.jinja").write_text(template)
    talks = [[*talk[:-1], {**talk[-1], "content": f"{talk[-1]['content']} {i}"}] for i in range(40)]
    domain = {"jsonl": str(file_of(tmp_path, talks)), "chat": "m", "holdout": "20%"}
    sets = ["prune=null", f"model.tokenizer={words}", "model.shape.vocab_size=258"]
    loaded = load_recipe(recipe(tmp_path), [*sets, f"data.domains={json.dumps({'d': domain})}"])
    with pytest.raises(SourceError, match=said) as error:
        preflight(loaded, offline=True)
    assert error.value.fix and len(str(error.value).splitlines()) == 2


def test_keys_that_exclude_each_other(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    both = ["data.domains.letters.chat=m", "data.domains.letters.prompt=x"]
    with pytest.raises(RecipeError, match="letters has `chat`, whose template writes the prompts"):
        load_recipe(path, both)
    with pytest.raises(RecipeError, match="chat"):
        load_recipe(path, ['data.domains.letters={"stdlib": "prose", "jsonl": null, "chat": "m"}'])
