"""Hostile recipes, made from the JSON schema: every key, with values that no one means.

Each is checked in this process. ``check`` ends with 0 or 2, in at most three lines without a
traceback, and within seconds. ``EFFCOMPRESS_FUZZ=20000`` sets the number of recipes (250 without).
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effcompress.cli import main
from effcompress.recipe import json_schema
from tests.runner.toys import texts

CASES = int(os.environ.get("EFFCOMPRESS_FUZZ", "250"))
LONG = 3.0
"""Seconds of processor time that one check may take."""

SHAPE = {
    **{"model_type": "llama", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"tie_word_embeddings": True, "max_position_embeddings": 128},
}
RECIPE: dict[str, Any] = {
    "name": "toy",
    "model": {"random": True, "tokenizer": "bytes", "shape": SHAPE},
    "data": {
        "sequence_length": 32,
        "domains": {"letters": {"jsonl": "letters.jsonl", "holdout": 0.2}},
    },
    "prune": {
        "target": {"keep": 0.7},
        "space": [{"name": "ffn", "scope": "lockstep"}, "attention", "hidden"],
        "criterion": "taylor",
        "schedule": {"name": "continuous", "every": 1, "start": 256},
    },
    "train": {"tokens": 2560, "batch_size": 4},
}

NUMBERS = [0, 1, -1, 2, 3, 7, 63, 64, 2**31, 2**63, 10**9, 10**15, 99999999999, 10**40, -(10**20)]
FLOATS = [0.5, 1.0, -0.0, -0.1, 1e-300, 1e300, 1.5, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    *("", " ", "a", "0", "-1", "1%", "100%", "101%", "1.5k", "999T", "1e9", "9" * 60 + "M", "auto"),
    *("x" * 5000, "../" * 2000, "/dev/null", "/dev/zero", ".", "~", "~nobody-here/x", "a\nb\nc\nd"),
    *("\x1b[31m", "\u202e", "\U0001f600", "{}", "{0}", "%s", "2:4", "==", "a==b", "a/b", "'", '"'),
    *("a\0b", "\ud800", "file://x", "[", "012", "null", "true", "llama", "bytes", "once", "ffn"),
]
SCALARS = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(FLOATS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, True, False]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def keys(schema: Any, definitions: Any, at: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Every key of the schema as a path of names, with the schema of its value."""
    if "$ref" in schema:
        yield from keys(definitions[schema["$ref"].rpartition("/")[2]], definitions, at)
    for alternative in schema.get("anyOf", ()):
        named = alternative.get("properties", {}).get("name", {}).get("const")
        yield from keys(alternative, definitions, (*at, f"name={named}") if named else at)
    for name, one in schema.get("properties", {}).items():
        if "const" not in one:
            yield (*at, name), one
            yield from keys(one, definitions, (*at, name))
    for keyword, name in (("additionalProperties", "letters"), ("items", "0")):
        if isinstance(schema.get(keyword), dict):
            yield (*at, name), schema[keyword]
            yield from keys(schema[keyword], definitions, (*at, name))


SCHEMA = json_schema()
KEYS = [
    *keys(SCHEMA, SCHEMA["$defs"], ()),
    *((("model", "shape", name), {"type": "integer"}) for name in (*SHAPE, "rope_scaling")),
]


def near(schema: Any) -> st.SearchStrategy[Any]:
    """Values that fit a schema, or nearly: at its bounds and beside them, and its own words."""
    bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    ends = [schema[bound] for bound in bounds if bound in schema]
    words = [*schema.get("enum", ()), *(end + step for end in ends for step in (-1, 0, 1))]
    return st.sampled_from(words) if words else SCALARS


def put(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """``tree`` with ``value`` at the path; a plugin on the way gets the name that the path says."""
    if not path:
        return value
    name, rest = path[0], path[1:]
    if name.startswith("name="):
        kept = tree if isinstance(tree, dict) and tree.get("name") == name[5:] else {}
        return put({**kept, "name": name[5:]}, rest, value) if rest else name[5:]
    if name == "0":
        listed = tree if isinstance(tree, list) else []
        return [put(listed[0] if listed else None, rest, value), *listed[1:]]
    mapping = tree if isinstance(tree, dict) else {}
    return {**mapping, name: put(mapping.get(name), rest, value)}


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    tree: Any = RECIPE
    for _ in range(draw(st.integers(1, 3))):
        path, schema = draw(st.sampled_from(KEYS))
        tree = put(tree, path, draw(st.one_of(near(schema), SCALARS, VALUES)))
    if draw(st.integers(0, 9)) == 0 and isinstance(tree, dict):
        tree = {**tree, draw(st.sampled_from(TEXTS)): draw(SCALARS)}
    return tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    texts(folder)
    return folder


@pytest.mark.timeout(0 if CASES > 1000 else 300)
@settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= 1000,
    suppress_health_check=list(HealthCheck),
)
@given(tree=recipes())
def test_any_recipe_is_checked_or_refused_in_words(tree: Any, folder: Path, capsys: Any) -> None:
    path = folder / "fuzz.yaml"
    # JSON, which is YAML: escapes for what no file holds, .inf and .nan as YAML writes them.
    text = json.dumps(tree).replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    path.write_text(text.replace("NaN", ".nan"), encoding="utf-8")
    capsys.readouterr()
    begun = time.process_time()
    with pytest.raises(SystemExit) as ended:  # another exception is a traceback
        main(["check", str(path)])
    spent = time.process_time() - begun
    said = capsys.readouterr().err
    assert ended.value.code in (0, 2, None) and spent < LONG, (spent, said)
    lines = said.splitlines()
    assert (not lines or lines[0].startswith("error: ")) and len(lines) <= 3, said


def test_the_recipe_that_is_changed_is_accepted(folder: Path) -> None:
    """Else nothing behind the first refusal would be tried."""
    path = folder / "sound.yaml"
    path.write_text(json.dumps(RECIPE))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    assert not ended.value.code


def test_every_number_has_bounds() -> None:
    open_ended = [
        ".".join(path)
        for path, schema in KEYS
        if {"integer", "number"} & set(_listed(schema.get("type", ())))
        and path[:2] != ("model", "shape")
        and not (
            {"minimum", "exclusiveMinimum"} & set(schema)
            and {"maximum", "exclusiveMaximum"} & set(schema)
        )
    ]
    assert not open_ended and len(KEYS) > 200


def _listed(kinds: Any) -> list[str]:
    return [kinds] if isinstance(kinds, str) else list(kinds)


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Any, str], str]:
    """Checks a recipe with an override that is refused; returns what was said."""

    def words(recipe: Any, override: str) -> str:
        path = folder / "refused.yaml"
        path.write_text(json.dumps(recipe))
        with pytest.raises(SystemExit) as ended:
            main(["check", str(path), "--set", override])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return words


@pytest.mark.parametrize(
    ("section", "plugin"),
    [
        ("prune.repair", "[{name: obs_update, damp: -0.1}]"),
        ("prune.repair", "[{name: obs_bias, damp: -0.1}]"),
        ("prune.refit", "{name: least_squares, damp: -0.1}"),
        ("sparsify", "{method: {name: sparsegpt, damp: -0.1}, sparsity: 50%}"),
    ],
)
def test_negative_damping_is_refused(
    refused: Callable[[Any, str], str], section: str, plugin: str
) -> None:
    assert "damp is -0.1, but must be at least 0" in refused(RECIPE, f"{section}={plugin}")


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("prune.space.1.minimum=0", "Write a number that is at least 1"),
        ("prune.space.1.minimum=null", "Write a whole number."),
        ("prune.space.1.skip_layers=null", "Write a list."),
    ],
)
def test_a_knob_without_a_text_of_help_is_refused_with_what_to_write(
    refused: Callable[[Any, str], str], override: str, fix: str
) -> None:
    recipe = put(RECIPE, ("prune", "space"), ["ffn", {"name": "attention"}])
    assert fix in refused(recipe, override)
