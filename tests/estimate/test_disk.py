"""What `plan` and `fetch --list` say of the disk, against what a run leaves there."""

from __future__ import annotations

from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.commands.fetch import fetch
from effcompress.data.tokens import CHUNK_CHARACTERS
from effcompress.estimate.disk import RATE
from effcompress.estimate.forecast import plan
from tests.runner.toys import events, recipe

ROOT = Path(__file__).parents[2]


def test_what_a_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "cache"))
    loaded = load_recipe(recipe(tmp_path), ["save.every=1", "prune.repair=[norm_gain, obs_update]"])
    said = plan(loaded).data["disk"]
    out = tmp_path / "out"
    run(loaded, output=out)
    largest = max(e["bytes"] for e in events(out, "checkpoint"))
    each = said["bytes"]["checkpoints"] / (3 + 1)
    assert largest == pytest.approx(each, rel=0.1)
    made = list((tmp_path / "cache" / "tokens").rglob("*.bin"))
    held = sum(file.stat().st_size for file in made)
    # Bytes for tokens: the text itself, without its JSON.
    assert 0.8 * said["bytes"]["tokenised_text"] < held <= said["bytes"]["tokenised_text"]
    assert said["bytes"]["export"] == pytest.approx(
        (out / "model.safetensors").stat().st_size, rel=0.1
    )
    assert said["bytes"]["source_model"] == 0


def test_text_by_hand(tmp_path: Path) -> None:
    """Of files no more than they hold; of other text what is read, and the rest of a chunk."""
    loaded = load_recipe(recipe(tmp_path))
    plain = plan(loaded).data["disk"]
    files = {name: (tmp_path / f"{name}.jsonl").stat().st_size for name in ("letters", "numbers")}
    assert plain["tokens"] == files
    assert plain["tokenising_seconds"] == pytest.approx(sum(files.values()) / RATE)
    sets = ["data.domains={prose: {stdlib: prose}, code: {stdlib: code, weight: 3}}"]
    other = plan(load_recipe(tmp_path / "toy.yaml", sets)).data["disk"]
    # 80 sequences in training, a quarter and three quarters of them; one more; three held out.
    chunk = CHUNK_CHARACTERS
    assert other["tokens"] == {"prose": 24 * 32 + chunk, "code": 64 * 32 + chunk}
    assert other["bytes"]["tokenised_text"] == 2 * (88 * 32 + 2 * chunk)
    sets += ["data.documents={pack: false}", "prune=null"]
    unknown = plan(load_recipe(tmp_path / "toy.yaml", sets))
    assert unknown.data["disk"]["bytes"]["tokenised_text"] is None
    assert any("tokenising: not known" in note for note in unknown.notes)


def test_one_checkpoint_where_nothing_is_trained(tmp_path: Path) -> None:
    sets = ["train=null", "prune.measure={source: calibration, sequences: 4}"]
    loaded = load_recipe(recipe(tmp_path, schedule="once"), sets)
    answer = plan(loaded)
    kept = {row[0]: row[2] for row in answer.sheets[-1].rows}
    assert kept["checkpoints"] == "one, of the pruned model"
    trained = plan(load_recipe(tmp_path / "toy.yaml", ["prune.schedule=at_end"])).data["disk"]
    assert answer.data["disk"]["bytes"]["checkpoints"] < trained["bytes"]["checkpoints"] / 4


def test_the_papers_run() -> None:
    """122.6B tokens of two bytes, and days of one core that the user reads before they pass."""
    answer = plan(load_recipe(ROOT / "recipes" / "efficientllm_469m.yaml"))
    said = answer.data["disk"]
    assert said["bytes"]["tokenised_text"] == pytest.approx(2 * 122.6e9, rel=0.01)
    assert said["bytes"]["checkpoints"] == pytest.approx(3 * 12 * 1.711e9, rel=0.01)
    assert said["bytes"]["export"] == pytest.approx(4 * 469e6, rel=0.01)
    assert any("days at 300k tokens/s" in note for note in answer.notes)


def test_fetch_lists_text_and_time(tmp_path: Path) -> None:
    answer = fetch(load_recipe(recipe(tmp_path)), list_only=True)
    rows = answer.sheets[0].rows
    assert [row[:2] for row in rows] == [("tokens", "letters"), ("tokens", "numbers")]
    assert all(row[2].startswith("up to ") for row in rows)
    assert answer.notes[0] == "This recipe needs nothing from elsewhere."
    assert any("tokenising" in note and "on one core" in note for note in answer.notes)
    assert answer.data["items"] == [] and set(answer.data["tokens"]) == {"letters", "numbers"}
