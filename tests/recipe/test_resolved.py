from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.recipe import load, plain, resolved, values
from effcompress.recipe.yaml_text import parse, scalar
from tests.recipe.toys import RECIPE, registry, write

OTHERS = {
    "as written": RECIPE,
    "random model": RECIPE.replace(
        "{hub: org/toy}",
        "{random: true, shape: {model_type: llama, rope: {theta: 1e4, kinds: [a, 1]}, empty: {}}}",
    ),
    "only training": RECIPE[: RECIPE.index("prune:")] + RECIPE[RECIPE.index("train:") :],
    "awkward text": RECIPE + 'evaluate: {prompt: "a: #b\\n  3e-4 \\u00e9 \\"q\\""}\n',
    "zeros": RECIPE[: RECIPE.index("prune:")] + "sparsify: {method: wanda, pattern: 2:4}\n",
    "tracked": RECIPE + "track: {to: [wandb, tensorboard], project: toys}\n",
    "no repair": RECIPE.replace("  target:", "  repair: []\n  target:"),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_resolved_loads_back_equal_from_another_folder(tmp_path, text):
    plugins = registry()
    first = load(write(tmp_path, text), (), plugins)
    written = resolved(first)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    copy = tmp_path / "runs" / "toy" / "recipe.resolved.yaml"
    copy.write_text(written, encoding="utf-8")
    second = load(copy, (), plugins)
    assert second.recipe == first.recipe
    assert plain(parse(resolved(second), copy).values) == plain(parse(written, copy).values)


def test_every_line_with_a_value_says_where_it_is_from(tmp_path):
    path = write(tmp_path)
    text = resolved(load(path, ["seed=3"], registry()))
    lines = text.splitlines()[1:]
    assert all("  # " in line for line in lines if not line.endswith(":"))
    assert "seed: 3  # --set" in lines
    assert f"  tokens: 1500  # {path}:16" in lines
    assert "      scope: per_layer  # default" in lines


def test_every_field_of_the_spec_is_written(tmp_path):
    loaded = load(write(tmp_path), (), registry())
    values = parse(resolved(loaded), None).values
    assert set(values) == {f.name for f in dataclasses.fields(loaded.recipe)}
    assert set(values["train"]) == {f.name for f in dataclasses.fields(loaded.recipe.train)}


@given(
    st.one_of(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30),
        st.floats(allow_nan=False),
        st.integers(),
        st.booleans(),
        st.none(),
        st.sampled_from(
            [
                "3e-4",
                "1E5",
                "null",
                "yes",
                "2024-01-31",
                "0x1f",
                "012",
                "0o17",
                "00",
                "089",
                "1:30.5",
                ".5",
                "5.",
                "=",
                "#a",
                " a",
                "1:30",
            ]
        ),
    )
)
def test_any_scalar_survives_one_line(value):
    line = f"key: {scalar(value)}  # default"
    assert "\n" not in line
    back = parse(line, None).values["key"]
    assert back == value and type(back) is type(value)


def test_values_of_a_resolved_recipe(tmp_path):
    """What two runs are compared by: every value by its dotted key, whatever text it holds."""
    text = RECIPE + 'evaluate: {prompt: "a: b  # no comment"}\n'
    found = values(resolved(load(write(tmp_path, text), (), registry())))
    assert found["evaluate.prompt"] == scalar("a: b  # no comment")
    assert found["prune.space.0.name"] == "ffn" and found["prune.space.1.minimum"] == "2"
    assert found["data.domains.notes.txt.1"] == str(tmp_path / "b.txt")
    assert found["plugins"] == "[]" and found["recover"] == "null"
