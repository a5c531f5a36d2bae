"""The hub: only safetensors, its own cache, and errors that say what to do. No network here."""

from __future__ import annotations

import shutil
import time

import pytest

from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.fetch import fetch
from effcompress.model.load import load
from effcompress.model.source import config_of, items
from effcompress.spec import ModelSpec

COMMIT = "a" * 40


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, hf_folder):
    """A hub cache that holds the one model someone/tiny."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    home = root / "models--someone--tiny"
    shutil.copytree(hf_folder, home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home / "snapshots" / COMMIT


def test_a_cached_snapshot_is_enough(hub_cache, tmp_path):
    spec = ModelSpec(hub="someone/tiny")
    assert fetch(spec, tmp_path, offline=True) == hub_cache
    assert (config_of(spec, tmp_path) or {})["hidden_size"] == 32
    assert [item.cached for item in items(spec, tmp_path)] == [True]
    loaded = load(spec, tmp_path, offline=True)
    assert loaded.source == f"someone/tiny@{COMMIT}"
    assert loaded.dtype == "float32"


def test_offline_and_not_cached(hub_cache, tmp_path):
    begin = time.perf_counter()
    with pytest.raises(SourceError, match="effcompress fetch RECIPE") as caught:
        fetch(ModelSpec(hub="someone/else"), tmp_path, offline=True)
    assert "someone/else" in str(caught.value)
    with pytest.raises(SourceError, match="tokenizer of someone/words"):
        fetch(ModelSpec(folder=hub_cache, tokenizer="someone/words"), tmp_path, offline=True)
    assert time.perf_counter() - begin < 5
    assert config_of(ModelSpec(hub="someone/else"), tmp_path) is None


def test_what_the_cache_has_no_folder_of_is_not_looked_for(hub_cache, tmp_path, monkeypatch):
    """The library's own look imports an HTTP client, which takes longer than a whole `plan`. Ids
    that it refuses are still refused.
    """
    import huggingface_hub

    def fail(*_a, **_k):
        raise AssertionError("asked")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert hub.cached_file("someone/else", None, "config.json") is None
    assert hub.cached_snapshot("someone/else", None) is None
    with pytest.raises(AssertionError, match="asked"):
        hub.cached_file("someone/tiny", None, "config.json")
    monkeypatch.undo()
    for bad in ("no--id", "..", "someone/else.git", "a/b/c"):
        with pytest.raises(SourceError, match="hub"):
            hub.cached_file(bad, None, "config.json")


def test_no_safetensors_says_so(hub_cache, tmp_path):
    (hub_cache / "model.safetensors").rename(hub_cache / "pytorch_model.bin")
    with pytest.raises(SourceError, match="effcompress fetch"):
        fetch(ModelSpec(hub="someone/tiny"), tmp_path, offline=True)


def test_no_safetensors_online(hub_cache, tmp_path, monkeypatch):
    (hub_cache / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "download", lambda *_a, **_k: hub_cache)
    with pytest.raises(SourceError, match="no safetensors"):
        fetch(ModelSpec(hub="someone/tiny"), tmp_path)


def test_only_safetensors_are_asked_for(monkeypatch, tmp_path):
    import huggingface_hub

    asked: dict = {}

    def download(repo, **keys):
        asked.update(keys, repo=repo)
        return str(tmp_path)

    def card(repo, name, **keys):
        asked["card"] = (repo, name, keys["revision"])
        raise OSError("this repository has none")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", card)
    lines: list[str] = []
    assert hub.download("a/b", "v1", progress=lines.append) == tmp_path
    assert (asked["repo"], asked["revision"]) == ("a/b", "v1")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not [p for p in asked["allow_patterns"] if p.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert "a/b" in lines[0]
    assert asked.pop("card") == ("a/b", "README.md", "v1"), "which states the license"
    hub.download("a/b", None, weights=False, code=True)
    assert "*.py" in asked["allow_patterns"]
    assert "*.safetensors" not in asked["allow_patterns"]
    assert "card" not in asked, "a tokenizer alone needs none"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RepositoryNotFoundError", "no such model"),
        ("GatedRepoError", "hf auth login"),
        ("RevisionNotFoundError", "no such revision"),
        ("LocalEntryNotFoundError", "check the network"),
        ("HFValidationError", "not a hub id"),
    ],
)
def test_hub_errors_are_explained(monkeypatch, name, words):
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, name)

    def fail(*_args, **_keys):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match=words) as caught:
        hub.download("a/b", "v1")
    assert "a/b" in str(caught.value)


def test_a_full_disk_names_the_hub_cache(monkeypatch):
    import huggingface_hub

    def fail(*_args, **_keys):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match="disk is full"):
        hub.download("a/b", None)


def test_not_a_hub_id():
    with pytest.raises(SourceError, match="not a hub id"):
        hub.cached_snapshot("no/such/id", None)
    with pytest.raises(SourceError, match="not a hub id"):
        hub.cached_file("no//id", None, "config.json")
