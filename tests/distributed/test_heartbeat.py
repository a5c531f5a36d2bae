"""The others wait for rank 0 as long as it lives, not for a fixed time."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

import pytest
import torch

from effcompress.distributed import world as room
from effcompress.distributed.world import joined
from effcompress.errors import RunError
from tests import warm

pytestmark = pytest.mark.timeout(600)


def work(seconds: float, beat: float, fails: bool) -> int:
    """Rank 0 works alone, longer than a collective may take; returns an exit code."""
    room.PATIENCE, room.BEAT, room.SILENCE = datetime.timedelta(seconds=2), beat, 3.0
    try:
        with joined() as world:
            with world.main_first():
                if world.main:
                    time.sleep(seconds)
                    if fails:
                        raise RunError("the text is gone")
            said = world.agree(lambda: time.sleep(seconds) or "done")
            again = [world.agree(lambda k=k: k) for k in range(20)]
            assert said == "done" and again == [*range(20)]
    except RunError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


def test_work_of_one_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    code, said = warm.together(work, 5.0, 0.2, False, folder=tmp_path)
    assert code == 0, said


def test_its_error_is_told_to_all(tmp_path: Path) -> None:
    code, said = warm.together(work, 1.0, 0.2, True, folder=tmp_path)
    assert code == 3 and said.count("the text is gone") == 2, said


def fails_alone() -> int:
    """Rank 0 fails outside its turn, while rank 1 waits for that."""
    try:
        with joined() as world:
            if world.main:
                time.sleep(2.0)
                raise MemoryError
            world.agree(lambda: 1)
    except (RunError, MemoryError) as error:
        print(repr(error), file=sys.stderr)
        time.sleep(3.0)  # longer than the others take to notice by the store's end
        return 3
    return 0


def test_the_others_hear_that_it_has_failed(tmp_path: Path) -> None:
    """At once, and not by its silence."""
    code, said = warm.together(fails_alone, folder=tmp_path)
    assert code == 3 and "process 0, which works for all, has failed" in said, said


def turned(folder: str) -> int:
    """Rank 1's disk is full, then the memory of its device; then rank 0's: what each rank hears."""
    heard = list[str]()
    given: list[tuple[int, Exception]] = [
        *((1, OSError(28, "No space left on device")), (1, torch.OutOfMemoryError("of 80 GB"))),
        *((0, MemoryError()), (0, Foreign("a", b=1)), (1, Foreign("a", b=1))),
    ]
    with joined() as world:
        for rank, error in given:

            def act(rank: int = rank, error: Exception = error) -> None:
                if world.rank == rank:
                    raise error

            try:
                world.each(act) if rank else world.agree(act)
            except Exception as found:  # noqa: BLE001
                heard.append(type(found).__name__ + str(getattr(found, "errno", "")))
    Path(folder, str(world.rank)).write_text(" ".join(heard))
    return 0


class Foreign(OSError):
    """Cannot be unpickled, as those of some libraries."""

    def __init__(self, what: str, *, b: int) -> None:
        super().__init__(what)
        self.b = b


def test_errors_of_the_system_are_told_as_they_are(tmp_path: Path) -> None:
    """Callers of every rank give a full disk and too little memory their words."""
    code, said = warm.together(turned, str(tmp_path), folder=tmp_path)
    assert code == 0, said
    heard = [(tmp_path / rank).read_text().split() for rank in "01"]
    assert heard[0] == ["OSError28", "MemoryError", "MemoryError", "ForeignNone", "RunError"]
    assert heard[1] == ["OSError28", "OutOfMemoryError", "MemoryError", "RunError", "ForeignNone"]


def test_silence_ends_the_others(tmp_path: Path) -> None:
    code, said = warm.together(work, 20.0, 60.0, False, folder=tmp_path)
    assert code and "no sign of life for 3 s" in said, said
