"""One process at a time writes into a run's folder, and only what is its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.checkpoint import sweep
from effcompress.errors import RecipeError
from effcompress.recipe import resolved
from effcompress.record.status_file import NAME, StatusFile
from effcompress.runner.folder import RESOLVED, check_folder, open_folder, require_equal
from effcompress.runner.run import run
from tests.runner.toys import recipe

GONE = 2**22 + 1
OLD = "2020-01-01T00:00:00+00:00"


def begun(folder: Path, **changes: object) -> Path:
    """A folder whose run this process works on, or what ``changes`` say of it."""
    out = folder / "out"
    loaded = load_recipe(recipe(folder))
    (out / "checkpoints" / "step-00000004").mkdir(parents=True)
    (out / RESOLVED).write_text(resolved(loaded))
    StatusFile(out, 20.0).phase("training")
    said = json.loads((out / NAME).read_text())
    (out / NAME).write_text(json.dumps({**said, **changes}))
    return out


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_under_way_is_refused_in_words_and_left_as_it_is(tmp_path: Path, resume: bool):
    out = begun(tmp_path)
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    with pytest.raises(RecipeError) as refused:
        run(load_recipe(tmp_path / "toy.yaml"), output=out, resume=resume)
    assert f"process {os.getpid()} on host " in refused.value.what
    assert "is running this since 20" in refused.value.what
    assert "effcompress status" in str(refused.value.fix)
    assert before == {path: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_on_another_host_a_heartbeat_is_life(tmp_path: Path) -> None:
    out = begun(tmp_path, host="far", pid=GONE)
    with pytest.raises(RecipeError, match=f"process {GONE} on host far"):
        check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)


@pytest.mark.parametrize(
    "change", [{"pid": GONE}, {"born": 1}, {"host": "far", "written": OLD}, {"open": False}]
)
def test_a_process_that_is_gone_holds_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    out = begun(tmp_path, **change)
    assert check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="the system does not say")
def test_what_ran_before_a_reboot_is_gone(tmp_path: Path) -> None:
    out = begun(tmp_path)
    said = json.loads((out / NAME).read_text())
    boot, _, pids = said["system"].partition(" ")
    (out / NAME).write_text(json.dumps({**said, "system": f"{boot[::-1]} {pids}"}))
    assert check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)


def test_of_two_that_start_at_once_one_goes_on(tmp_path: Path) -> None:
    loaded, out = load_recipe(recipe(tmp_path)), tmp_path / "out"
    with open_folder(loaded, out, resume=False):
        before = (out / RESOLVED).read_bytes()
        with pytest.raises(RecipeError, match="another process has just begun this run"):
            open_folder(loaded, out, resume=False).__enter__()
        assert (out / RESOLVED).read_bytes() == before == resolved(loaded).encode()
    with open_folder(loaded, out, resume=False):
        pass


@pytest.mark.parametrize("name", ["metrics.jsonl", "plans.jsonl", "checkpoints", RESOLVED])
def test_what_a_run_writes_is_no_link(tmp_path: Path, name: str) -> None:
    out, there = begun(tmp_path, open=False), tmp_path / "mine"
    if name == "checkpoints":
        (out / name).rename(there)
    else:
        there.write_text((out / name).read_text() if name == RESOLVED else "mine\n")
        (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(there)
    with pytest.raises(RecipeError, match=f"{name}: this is a link"):
        run(load_recipe(tmp_path / "toy.yaml"), output=out, resume=True)
    assert there.is_dir() or there.read_text()


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"{", b"a: b: c\n"])
def test_a_damaged_recipe_of_a_run_is_named(tmp_path: Path, damage: bytes) -> None:
    out = begun(tmp_path, open=False)
    (out / RESOLVED).write_bytes(damage)
    with pytest.raises(RecipeError, match="not the recipe that a run wrote") as refused:
        check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)
    assert refused.value.where == str(out / RESOLVED)


def test_what_dead_processes_left_goes_and_what_others_need_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alive = os.getppid()
    kept = [tmp_path / f".exporting-{alive}", tmp_path / f"effcompress-proof-{alive}-abc"]
    kept += [tmp_path / "checkpoints" / name for name in (".writing-mine", f".writing-{alive}")]
    gone = [tmp_path / f".exporting-{GONE}", tmp_path / f"effcompress-proof-{GONE}-abc"]
    gone += [tmp_path / "checkpoints" / f".writing-{pid}" for pid in (GONE, os.getpid())]
    for path in (*kept, *gone):
        path.mkdir(parents=True)
        (path / "file").touch()
    sweep(tmp_path)
    assert all(path.is_dir() for path in kept) and not any(path.exists() for path in gone)


def test_the_name_of_a_recipe_may_hold_what_yaml_takes_for_the_end_of_a_line(tmp_path: Path):
    odd = recipe(tmp_path).rename(tmp_path / "to\u2028y\x85a\nb.yaml")
    loaded, out = load_recipe(odd), tmp_path / "out"
    with open_folder(loaded, out, resume=False):
        pass
    (out / "config.json").touch()
    assert check_folder(loaded, out, resume=True)
    assert check_folder(load_recipe(out / RESOLVED), out, resume=True)


@pytest.mark.parametrize("output", ["loop", "loop/run"])
def test_a_link_that_leads_to_itself(tmp_path: Path, output: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RecipeError, match="cannot be made") as refused:
        run(load_recipe(recipe(tmp_path)), output=tmp_path / output)
    assert "--output" in str(refused.value.fix)


@pytest.mark.parametrize("name", ["metrics.jsonl", "plans.jsonl", "report.html", NAME])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    """Else the run fails where it writes that file: the report, after all training."""
    out = begun(tmp_path, pid=GONE)
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    with pytest.raises(RecipeError, match="this is a folder") as refused:
        check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)
    assert refused.value.where == str(out / name) and "Move it away" in str(refused.value.fix)


@pytest.mark.parametrize("name", ["out", "checkpoints", "metrics.jsonl", RESOLVED])
def test_what_may_not_be_written_is_said_before_all_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else the run fails where it writes there: in the export, after all training."""
    out, allowed = begun(tmp_path, pid=GONE), os.access
    (out / "metrics.jsonl").touch()
    # Tests may run as root, whom no mode stops.
    monkeypatch.setattr(os, "access", lambda at, how: Path(at).name != name and allowed(at, how))
    with pytest.raises(RecipeError, match="a run writes here, and you may not") as refused:
        check_folder(load_recipe(tmp_path / "toy.yaml"), out, resume=True)
    assert Path(str(refused.value.where)).name == name and "--output" in str(refused.value.fix)


def test_of_a_project_that_was_moved_it_is_said_how_to_continue(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.folder was /a/src, is /b/src") as refused:
        require_equal({"model.folder": "/a/src"}, {"model.folder": "/b/src"}, tmp_path)
    assert "ln -s /b/src /a/src" in str(refused.value.fix)
    assert str(tmp_path / RESOLVED) in str(refused.value.fix)


@pytest.mark.parametrize(
    ("key", "now", "accepted"),
    [
        ("model.folder", "/b/src", True),
        ("data.domains.my.text.jsonl.0", "'/b c/src'", True),
        ("plugins.12", "/b/src", True),
        ("model.folder", "/b/other", False),  # another name: another model is meant
        ("model.folder", "src", False),
        ("evaluate.prompt", "/b/src", False),
    ],
)
def test_places_may_differ_where_content_is_compared(
    tmp_path: Path, key: str, now: str, accepted: bool
) -> None:
    with pytest.raises(RecipeError):
        require_equal({key: "/a/src"}, {key: now}, tmp_path)
    if accepted:
        require_equal({key: "/a/src"}, {key: now}, tmp_path, moves=True)
    else:
        with pytest.raises(RecipeError):
            require_equal({key: "/a/src"}, {key: now}, tmp_path, moves=True)
