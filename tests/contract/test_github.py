"""Forms and workflow: what GitHub would refuse, and that the workflow is `.ci/run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from effcompress.injectable import INPUTS

FOLDER = Path(__file__).parents[2] / ".github"
FORMS = sorted(path for path in (FOLDER / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def test_there_are_three_forms() -> None:
    assert [path.stem for path in FORMS] == ["bug", "method", "question"]
    assert read(FOLDER / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    assert len({part["id"] for part in form["body"]}) == len(form["body"])
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_a_bug_comes_with_versions_and_recipe() -> None:
    parts = {part["id"]: part for part in read(FORMS[0])["body"]}
    for needed in ("command", "recipe", "environment"):
        assert parts[needed]["validations"]["required"]
    assert "effcompress --version" in parts["environment"]["attributes"]["description"]


def test_a_method_can_be_of_every_kind() -> None:
    (kinds,) = (part for part in read(FORMS[1])["body"] if part["id"] == "kind")
    said = " ".join(kinds["attributes"]["options"])
    assert all(kind in said for kind in INPUTS)


def test_the_workflow_runs_what_a_developer_runs() -> None:
    job = read(FOLDER / "workflows" / "ci.yml")["jobs"]["all"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(FOLDER.parent / ".ci" / "run", os.X_OK)
    assert min(job["strategy"]["matrix"]["python"]) == "3.11"
