"""The others wait for rank 0 as long as it lives, not for a fixed time."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

import pytest

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


def test_silence_ends_the_others(tmp_path: Path) -> None:
    code, said = warm.together(work, 20.0, 60.0, False, folder=tmp_path)
    assert code and "no sign of life for 3 s" in said, said
