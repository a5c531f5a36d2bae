"""A file or folder of the cache is there whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest

from effcompress.errors import SourceError
from effcompress.model import cache
from effcompress.model.cache import atomically, cache_root


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("EFFCOMPRESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "effcompress"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "effcompress"
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "deep" / "model"
    for content in ("old", "new"):
        with atomically(target) as work:
            work.mkdir()
            (work / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(target.parent.iterdir()) == [target]


def test_a_file_replaces_a_file(tmp_path):
    for content in ("old", "new"):
        with atomically(tmp_path / "file") as work:
            work.write_text(content)
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_a_failure(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), atomically(tmp_path / "file") as work:
        work.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_the_folder_and_what_was_freed(tmp_path, error):
    with pytest.raises(SourceError) as caught, atomically(tmp_path / "model") as work:
        work.mkdir()
        (work / "weights").write_bytes(bytes(2_000_000))
        raise error
    assert str(tmp_path) in str(caught.value)
    assert "disk is full; 2.0 MB" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="EFFCOMPRESS_CACHE"), atomically(tmp_path / "file" / "x"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from effcompress.model.cache import atomically
with atomically(Path(sys.argv[1])) as work:
    work.mkdir()
    (work / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_go_next_time(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], check=False)
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.endswith(cache.SUFFIX)
    with atomically(tmp_path / "other") as work:
        work.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_work_of_others_stays_until_it_is_old(tmp_path, monkeypatch):
    theirs = tmp_path / ".model.another_host.1.0a1b2c3d.partial"
    alive = tmp_path / f".model.{cache._host()}.1.0a1b2c3d.partial"
    for path in (theirs, alive):
        path.mkdir()
    with atomically(tmp_path / "x") as work:
        work.write_text("")
    assert theirs.is_dir() and alive.is_dir()
    later = time.time() + cache.ABANDONED_AFTER + 60
    monkeypatch.setattr(cache.time, "time", lambda: later)
    with atomically(tmp_path / "x") as work:
        work.write_text("")
    assert not theirs.exists()


def test_importing_the_early_modules_costs_nothing():
    code = (
        "import sys, effcompress.model, effcompress.model.source, effcompress.model.cache\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'tokenizers', 'gguf', 'numpy'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
