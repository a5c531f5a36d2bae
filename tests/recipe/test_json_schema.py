from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest

from effcompress.recipe import json_schema
from effcompress.recipe.yaml_text import parse
from effcompress.spec import Recipe
from tests.recipe.toys import RECIPE, registry


@pytest.fixture(scope="module")
def schema():
    return json_schema(registry())


def test_it_is_a_schema_and_plain_json(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


def test_it_accepts_the_toy_recipe_as_written(schema):
    jsonschema.Draft202012Validator(schema).validate(parse(RECIPE, None).values)


def test_every_field_is_there_with_its_help(schema):
    for field in dataclasses.fields(Recipe):
        assert schema["properties"][field.name]["description"] == field.metadata["help"]
    sections = {"ModelSpec", "PruneSpec", "TrainSpec", "DomainSpec", "LearningRateSpec"}
    assert sections <= set(schema["$defs"])
    assert schema["properties"]["include"]["type"] == ["string", "array"]


def test_unknown_keys_are_refused_everywhere(schema):
    objects = [d for d in schema["$defs"].values() if "properties" in d]
    objects += [b for d in schema["$defs"].values() for b in d.get("anyOf", [])[1:]]
    assert all(o["additionalProperties"] is False for o in [schema, *objects])


def test_knobs_come_from_signatures(schema):
    branches = {
        b["properties"]["name"]["const"]: b for b in schema["$defs"]["criterion"]["anyOf"][1:]
    }
    order = branches["taylor"]["properties"]["order"]
    assert order == {"enum": ["first", "second"], "default": "first"}
    assert branches["picky"]["required"] == ["name", "factor"]
    assert "picky" not in schema["$defs"]["criterion"]["anyOf"][0]["enum"]
    assert branches["second"]["properties"]["alpha"]["maximum"] == 1
