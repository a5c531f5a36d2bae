from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from effcompress.recipe.source_map import Document, Mark, assign, merge
from effcompress.recipe.yaml_text import parse

KEYS = st.sampled_from(["a", "b", "c", "d"])
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(KEYS, TREES, max_size=4)


def document(values: Any) -> Document:
    return Document(values, {(): Mark(None, 1, "test")})


def leaves(values: Any, at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(values, dict) and values:
        return {
            k: v for name, inner in values.items() for k, v in leaves(inner, (*at, name)).items()
        }
    return {at: values}


def touches(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    length = min(len(one), len(other))
    return one[:length] == other[:length]


@given(MAPPINGS, MAPPINGS)
def test_merge_keeps_every_key_that_the_second_does_not_touch(base, over):
    merged = leaves(merge(document(base), document(over)).values)
    above = leaves(over) if over else {}
    for key, value in above.items():
        if value != {}:
            assert merged[key] == value
    for key, value in (leaves(base) if base else {}).items():
        if not any(touches(key, other) for other in above):
            assert merged[key] == value


@given(MAPPINGS, st.lists(KEYS, min_size=1, max_size=3), st.integers())
def test_set_changes_one_key_and_no_other(base, path, value):
    try:
        changed = assign(document(base), ".".join(path), document(value)).values
    except ValueError:
        return  # the path leads through a number
    at = tuple(path)
    assert leaves(changed)[at] == value
    for key, old in (leaves(base) if base else {}).items():
        if not touches(key, at):
            assert leaves(changed)[key] == old


@given(MAPPINGS, MAPPINGS)
def test_merge_leaves_its_arguments_alone(base, over):
    before = repr((base, over))
    merge(document(base), document(over))
    assert repr((base, over)) == before


def test_marks_of_replaced_values_go():
    base, over = parse("a: {b: 1}\nc: 2", None), parse("a: 3", None, "over")
    merged = merge(base, over)
    assert ("a", "b") not in merged.marks
    assert merged.marks[("a",)].given == "over"
    assert merged.marks[("c",)].line == 2


def test_a_dotted_name_that_exists_is_one_key():
    base = parse("data: {domains: {web.en: {weight: 1}}}", None)
    changed = assign(base, "data.domains.web.en.weight", parse("2", None))
    assert changed.values == {"data": {"domains": {"web.en": {"weight": 2}}}}
