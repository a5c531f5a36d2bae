"""`effcompress report`: the page of a run that has ended, made again from its record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.errors import Stopped
from effcompress.record.status_file import StatusFile
from effcompress.runner import run as story
from effcompress.stopping import Stopping
from tests.runner.toys import recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(load_recipe(recipe(folder)), output=folder / "out")
    return folder / "out"


def called(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_page_is_the_one_that_was_there(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    made = [
        "report.html",
        "README.md",
        *(f"pictures/{p.name}" for p in (out / "pictures").iterdir()),
    ]
    before = {name: (out / name).read_text() for name in made}
    others = {
        p: p.stat().st_mtime_ns for p in out.rglob("*.*") if str(p.relative_to(out)) not in made
    }
    assert len(before) > 8
    for name in made:
        (out / name).unlink()
    assert called("report", out) == 0
    assert {name: (out / name).read_text() for name in made} == before
    assert {path: path.stat().st_mtime_ns for path in others} == others
    said = capsys.readouterr().out
    assert "report.html" in said and "README.md" in said
    assert called("report", out, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["written"]) == 2


def test_a_stopped_run_has_a_page_and_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping, real = Stopping(), story.train_step

    def step(*given, **more):
        if not stopping.asked:
            stopping.request(15)
        return real(*given, **more)

    monkeypatch.setattr(story, "train_step", step)
    with pytest.raises(Stopped):
        run(load_recipe(recipe(tmp_path)), output=tmp_path / "out", stopping=stopping)
    stopping.close()
    (tmp_path / "out" / "report.html").unlink()
    assert called("report", tmp_path / "out") == 0
    assert "was stopped by SIGTERM" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "README.md").exists()


def test_every_run_of_a_comparison(finished: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "report.html").unlink()
    assert called("report", tmp_path) == 0
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 2


def test_what_has_no_page_yet(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("report", tmp_path / "nowhere") == 2
    assert "there is no such folder" in capsys.readouterr().err
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    StatusFile(out, 20.0).beat()
    page = (out / "report.html").stat().st_mtime_ns
    assert called("report", out) == 2
    said = capsys.readouterr().err
    assert "this run is under way" in said and "effcompress status" in said
    assert (out / "report.html").stat().st_mtime_ns == page
    StatusFile(out, 20.0).close()
    (out / "metrics.jsonl").unlink()
    assert called("report", out) == 2
    assert "has recorded nothing yet" in capsys.readouterr().err
