"""Checkpoints are complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from effcompress import fault
from effcompress.checkpoint import GrowingCopy, Saved, newest, save, size, steps, thin
from effcompress.errors import RunError, Stopped

save_room = sys.modules["effcompress.checkpoint.save"]  # the package's name is the function


def saved(step: int) -> Saved:
    return Saved(
        {"step": step}, {"model/a": torch.full((3, 2), float(step)), "rng": torch.arange(4)}
    )


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_round_trip_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, saved(step), keep=2)
    assert [p.name for p in steps(tmp_path)] == ["step-00000002", "step-00000003"]
    found = newest(tmp_path, no_warning)
    assert found is not None and found.values["step"] == 3
    assert torch.equal(found.tensors["model/a"], torch.full((3, 2), 3.0))
    assert found.tensors["model/a"].data_ptr() % 64 == 0


def test_with_the_last_checkpoint_goes_its_folder(tmp_path: Path) -> None:
    """But for what is not the copy of a file beside it."""
    (tmp_path / "metrics.jsonl").write_text("{}")
    for own in (True, False):
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("{}")
        if own:
            (folder / "mine.jsonl").write_text("{}")
        assert thin(folder, 1) == (0, 0)
        assert [*folder.glob("*")] == ([folder / "mine.jsonl"] if own else [])
        if own:
            (folder / "mine.jsonl").unlink()
            folder.rmdir()
        assert not folder.exists() and (tmp_path / "metrics.jsonl").is_file()


def test_nothing_there(tmp_path: Path) -> None:
    assert newest(tmp_path / "none", no_warning) is None


@pytest.mark.parametrize("damage", ["truncate", "scramble", "flip", "state", "missing"])
def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, saved(1), keep=2)
    path = save(tmp_path, 2, saved(2), keep=2)
    tensors = path / "tensors.safetensors"
    if damage == "truncate":
        os.truncate(tensors, tensors.stat().st_size - 5)
    if damage == "scramble":
        tensors.write_bytes(b"\xff" * tensors.stat().st_size)
    if damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    if damage == "state":
        (path / "state.json").write_text("{")
    if damage == "missing":
        tensors.unlink()
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None and found.values["step"] == 1
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]


VALUES: dict[str, Any] = {"tokens": 4096, "seed": 0, "begun": {"ffn.0": 12}, "seconds": 1.5}


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = path / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps(change(values) or values, indent=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(tokens=4097),
        lambda v: v.update(seconds=1.25),
        lambda v: v["begun"].update({"ffn.0": 13}),
        lambda v: v.pop("seed") * 0,
        lambda v: v.pop("state_sha256") and None,
        lambda v: v.update(more=1),
        lambda v: v.update(format=2),
        lambda v: v.update(format=1),
        lambda v: v.update(format="x"),
        lambda v: v.update(files=[]),
        lambda v: v.update(files={"../step-00000001/tensors.safetensors": {"bytes": 1}}),
        lambda v: [v],
        lambda _: 7,
        lambda _: "text",
    ],
)
def test_values_that_were_changed_are_no_checkpoint(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    for step in (1, 2):
        path = save(tmp_path, step, Saved({"step": step, **VALUES}, saved(step).tensors), keep=2)
    rewritten(path, change)
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None and found.values["step"] == 1 and found.values["tokens"] == 4096
    assert len(said) == 1 and "step-00000002 is damaged" in said[0] and "the one before" in said[0]


@pytest.mark.parametrize("text", ["[" * 200_000, "\xff", "", "null", '{"format": 3, "format": 3}'])
def test_a_state_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1, saved(1), keep=2)
    (path / "state.json").write_bytes(text.encode("latin-1"))
    said: list[str] = []
    assert newest(tmp_path, said.append) is None
    assert len(said) == 1 and "there is none before it" in said[0]


def test_a_huge_state_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, saved(1), keep=2)
    monkeypatch.setattr(save_room, "MOST_BYTES", 10)
    said: list[str] = []
    assert newest(tmp_path, said.append) is None and "bytes" in said[0]


def earlier(values: dict[str, Any]) -> None:
    """As versions wrote it that hashed no values."""
    del values["state_sha256"]
    values["format"] = 2


LIKE = {"step": 0, "begun": {}, "names": [""], "of": {"a": 0.0, "b?": [0], "c?": None}}
WHOLE: dict[str, Any] = {"step": 2, "begun": {"ffn.0": 3}, "names": ["x"], "of": {"a": 1}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda v: v.update(step="2"),
        lambda v: v.update(step=True),
        lambda v: v.update(step=-2),
        lambda v: v.pop("step") and None,
        lambda v: v.pop("names") and None,
        lambda v: v.update(begun={"ffn.0": "many"}),
        lambda v: v.update(begun=[]),
        lambda v: v.update(names=["x", 3]),
        lambda v: v.update(of={}),
        lambda v: v.update(of={"a": None}),
        lambda v: v.update(of={"a": 1, "b": [1.5]}),
        lambda v: v.update(files={}),
        lambda v: v.update(files=["tensors.safetensors"]),
    ],
)
def test_values_without_a_hash_have_the_structure(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any]
) -> None:
    for step in (1, 2):
        path = save(tmp_path, step, Saved({**WHOLE, "step": step}, saved(step).tensors), keep=2)
        rewritten(path, earlier)
    said: list[str] = []
    found = newest(tmp_path, said.append, like=LIKE)
    assert found is not None and found.values["step"] == 2 and not said
    rewritten(path, damage)
    found = newest(tmp_path, said.append, like=LIKE)
    assert found is not None and found.values["step"] == 1 and len(said) == 1


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, saved(1), keep=2)
    module = save_room

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(RunError, match=r"step 2 cannot be written.*No space left"):
        save(tmp_path, 2, saved(2), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001"]


def test_what_reads_back_as_something_else_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, saved(1), keep=2)
    module = save_room
    real = module.save_file

    def lies(tensors, path):
        real({**tensors, "rng": torch.zeros(4, dtype=torch.int64)}, path)

    monkeypatch.setattr(module, "save_file", lies)
    with pytest.raises(RunError, match="step 2 cannot be written: rng reads back as something"):
        save(tmp_path, 2, saved(2), keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_numbers_that_are_none_are_kept_as_they_are(tmp_path: Path) -> None:
    odd = {"none": torch.tensor([torch.nan, torch.inf]), "empty": torch.zeros(0, 3)}
    save(tmp_path, 1, Saved({}, {**odd, "flag": torch.tensor(True)}), keep=1)
    found = newest(tmp_path, no_warning)
    assert found is not None and bool(found.tensors["none"].isnan()[0])


def test_what_earlier_versions_wrote_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 1, saved(1), keep=1)
    values = json.loads((path / "state.json").read_text())
    (said,) = values.pop("files").values()
    for old in ({**values, **said, "format": 1}, {**values, "bytes": said["bytes"], "format": 1}):
        (path / "state.json").write_text(json.dumps(old))
        found = newest(tmp_path, no_warning)
        assert found is not None and found.values["step"] == 1
    (path / "state.json").write_text(json.dumps({**old, "bytes": 7}))
    said_: list[str] = []
    assert newest(tmp_path, said_.append) is None
    assert "not 7" in said_[0]


def test_rows_in_several_files_are_one_tensor(tmp_path: Path) -> None:
    for rank, rows in enumerate((range(0, 3), range(3, 6), range(6, 7), range(0))):
        save_room.write(tmp_path / f"rows-{rank}", {"a": torch.tensor([*rows]).reshape(-1, 1)})
    save_room.write(tmp_path / "other", {"b": torch.ones(2)})
    found = save_room.Stored(sorted(tmp_path.iterdir()))
    assert sorted(found) == ["a", "b"]
    assert torch.equal(found["a"], torch.arange(7).reshape(-1, 1))
    assert torch.equal(Saved({}, found).part("b")[""], torch.ones(2))


def test_leftovers_of_a_dead_writer_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".writing-999999").mkdir()
    save(tmp_path, 1, saved(1), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_counts_before_it_is_whole_and_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the moment of a crash: no folder has the name of a checkpoint before its state and
    its list of names were flushed.
    """
    save(tmp_path, 1, saved(1), keep=3)
    flushed: list[str] = []
    seen: list[tuple[str, list[str], list[str]]] = []

    def flush(*paths: Path) -> None:
        flushed.extend(path.name for path in paths)

    def point(name: str) -> None:
        seen.append((name, [p.name for p in steps(tmp_path)], list(flushed)))

    monkeypatch.setattr(save_room, "flush", flush)
    monkeypatch.setattr(fault, "point", point)
    save(tmp_path, 2, saved(2), keep=3)
    places = {name: (there, done) for name, there, done in seen}
    assert places["save.tensors"][0] == places["save.rename"][0] == ["step-00000001"]
    before = places["save.rename"][1]
    assert before[:2] == ["tensors.safetensors", "state.json"]
    assert before[2].startswith(".writing-")
    assert places["save.renamed"][0] == ["step-00000001", "step-00000002"]
    assert places["save.renamed"][1][-1] == tmp_path.name


def test_damaged_ones_that_were_passed_over_go(tmp_path: Path) -> None:
    """Else the next run would find them newer than what this one saves."""
    for step in (1, 2, 3):
        path = save(tmp_path, step, saved(step), keep=5)
    (path / "state.json").write_text("{")
    save(tmp_path, 2, saved(2), keep=5)
    assert [p.name for p in steps(tmp_path)] == ["step-00000001", "step-00000002"]


def grown(record: Path, folder: Path, *lines: bytes) -> GrowingCopy:
    """Saves a checkpoint after each line that is added to the record; returns its copy."""
    copy = GrowingCopy(record, folder)
    for line in lines:
        with record.open("ab") as file:
            file.write(line)
        step = record.stat().st_size
        growing = {record.name: copy.until(step)}
        save(folder, step, replace(saved(step), growing=growing), keep=9)
    return copy


def test_all_checkpoints_share_one_copy_of_the_record(tmp_path: Path) -> None:
    """Each reads its own part of it; a damaged byte spares those that end before."""
    record, folder = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    grown(record, folder, b'{"a": 1}\n', b'{"b": 2}\n', b'{"c": 3}\n')
    copy = folder / "metrics.jsonl"
    assert copy.read_bytes() == record.read_bytes() and not [*folder.glob("step-*/*.jsonl")]
    found = newest(folder, no_warning)
    assert found is not None and found.texts == {"metrics.jsonl": record.read_bytes()}
    assert sorted(found.tensors) == ["model/a", "rng"]
    values = json.loads((folder / "step-00000027" / "state.json").read_text())
    assert values["bytes"] == size(folder / "step-00000027")
    copy.write_bytes(copy.read_bytes().replace(b"2", b"5"))
    # The run's own file is as good, while it is what was written.
    found = newest(folder, no_warning)
    assert found is not None and found.texts == {"metrics.jsonl": record.read_bytes()}
    record.write_bytes(record.read_bytes().replace(b"2", b"6"))
    said: list[str] = []
    found = newest(folder, said.append)
    assert found is not None and found.texts == {"metrics.jsonl": b'{"a": 1}\n'}
    assert len(said) == 2 and all("metrics.jsonl is not what was written" in line for line in said)
    copy.unlink()
    found = newest(folder, said.append)
    assert found is not None and found.texts == {"metrics.jsonl": b'{"a": 1}\n'}
    record.unlink()
    assert newest(folder, said.append) is None


def test_another_process_goes_on_with_the_copy(tmp_path: Path) -> None:
    """After a resume from the first, which took the record back; whatever a killed process left."""
    record, folder = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    grown(record, folder, b"first\n" * 200_000, b"second\n")
    record.write_bytes(b"first\n" * 200_000)
    (folder / "step-01200007" / "state.json").write_text("{")  # the reason
    copy = grown(record, folder, b"other\n")
    assert (folder / "metrics.jsonl").read_bytes() == record.read_bytes()
    found = newest(folder, no_warning)
    assert found is not None and found.texts == {"metrics.jsonl": record.read_bytes()}
    (steps(folder)[-1] / "state.json").unlink()
    oldest = newest(folder, no_warning)
    assert oldest is not None and oldest.texts == {"metrics.jsonl": b"first\n" * 200_000}
    elsewhere = tmp_path / "mine"
    elsewhere.write_bytes(b"mine")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(elsewhere)
    facts = copy.until(record.stat().st_size)()
    assert elsewhere.read_bytes() == b"mine" and not (folder / "metrics.jsonl").is_symlink()
    assert facts["sha256"] == hashlib.sha256(record.read_bytes()).hexdigest()


def test_only_what_is_new_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 50 checkpoints every byte of the record is hashed, and written, once."""
    record, folder, read = tmp_path / "metrics.jsonl", tmp_path / "checkpoints", [0]
    real = hashlib.sha256

    class Counted:
        def __init__(self, data: bytes = b"") -> None:
            self.inner = real(data)

        def update(self, data: bytes) -> None:
            read[0] += len(data)
            self.inner.update(data)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counted)
    grown(record, folder, *[b"x" * 999 + b"\n"] * 50)
    assert read[0] == 50_000


def test_a_record_in_each_checkpoint_is_still_read(tmp_path: Path) -> None:
    """As format 3 has it."""
    path = save(tmp_path, 1, saved(1), keep=1)
    text, file = b'{"event": "a"}\n', path / "state.json"
    (path / "metrics.jsonl").write_bytes(text)
    values = json.loads(file.read_text())
    del values["record"], values["state_sha256"]
    facts = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    values |= {"format": 3, "files": {**values["files"], "metrics.jsonl": facts}}
    values["state_sha256"] = hashlib.sha256(json.dumps(values, indent=1).encode()).hexdigest()
    file.write_text(json.dumps(values, indent=1))
    found = newest(tmp_path, no_warning)
    assert found is not None and found.texts == {"metrics.jsonl": text}
    (path / "metrics.jsonl").write_bytes(text[::-1])
    said: list[str] = []
    assert newest(tmp_path, said.append) is None and "metrics.jsonl" in said[0]


def test_what_a_user_put_there_stays(tmp_path: Path) -> None:
    """Folders of other names, links, folders without a state, and files in a checkpoint."""
    save(tmp_path, 1, saved(1), keep=1)
    (tmp_path / "step-00000001" / "notes.txt").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "state.json").touch()
    (tmp_path / "step-00000077").symlink_to(tmp_path / "elsewhere")
    mine = ("step-best", "step-00000009-copy", "step-00000099", "step-0000000\u0663")
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").touch()
    (tmp_path / "step-best" / "state.json").touch()
    for step in (2, 3, 4):
        save(tmp_path, step, saved(step), keep=1)
    assert [p.name for p in steps(tmp_path)] == ["step-00000004"]
    assert all((tmp_path / name / "weights.bin").exists() for name in mine)
    assert (tmp_path / "step-best" / "state.json").exists()
    assert (tmp_path / "step-00000077" / "state.json").exists()
    assert [p.name for p in (tmp_path / "step-00000001").iterdir()] == ["notes.txt"]
    assert not (tmp_path / "step-00000002").exists()


def test_a_users_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "mine").touch()
    with pytest.raises(RunError, match="step 2 cannot be written"):
        save(tmp_path, 2, saved(2), keep=1)
    assert [p.name for p in tmp_path.rglob("*")] == ["step-00000002", "mine"]


def test_a_second_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_name: str) -> None:
        raise Stopped("by SIGINT")

    monkeypatch.setattr(fault, "point", pressed)
    with pytest.raises(Stopped):
        save(tmp_path, 1, saved(1), keep=1)
    assert not [*tmp_path.iterdir()]
