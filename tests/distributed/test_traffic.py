"""What two processes send each other is what `plan` says, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effcompress import load_recipe
from effcompress.runner.reach import priced
from effcompress.runner.traffic import Message, per_commit, per_cut, per_step
from tests.runner.toys import recipe

COUNTING = Path(__file__).with_name("counting.py")
WIDE = "[{name: attention}, {name: ffn}, hidden]"


def by_collective(said: list[Message]) -> dict[str, int]:
    found: dict[str, int] = {}
    for m in said:
        if m.what != "decision":
            found[m.collective] = found.get(m.collective, 0) + m.bytes
    return found


@pytest.mark.parametrize(
    ("criterion", "space"),
    [("taylor", WIDE), ("mask_fisher", WIDE.replace(", hidden", ""))],
)
def test_bytes_of_a_step_a_cut_and_a_commit(tmp_path: Path, criterion: str, space: str) -> None:
    path = recipe(tmp_path, criterion=criterion)
    text = path.read_text()
    start = text.index("  space: ")
    space_line = text[start : text.index("\n", start)]
    text = text.replace(space_line, f"  space: {space}\n  repair: [norm_gain, obs_update]")
    path.write_text(text.replace("commit_every: 5", "commit_every: 1000"))
    start_two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = tmp_path / "said.json"
    done = subprocess.run(
        [sys.executable, *start_two, str(COUNTING), str(path), str(output)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "EFFCOMPRESS_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(output.read_text())
    loaded = load_recipe(path)
    found, prune = priced(loaded), loaded.recipe.prune
    assert found is not None and prune is not None
    assert said["step"] == by_collective(per_step(found, loaded.recipe, {}, 2, found.start))
    cut = per_cut(found, prune, {}, said["groups"], said["touched"])
    decided = said["cut"].pop("decision")
    assert said["touched"] and said["cut"] == by_collective(cut)
    guess = next(m.bytes for m in cut if m.what == "decision")
    assert guess / 3 < decided < guess * 3  # an estimate: names and numbers, pickled
    assert said["surgery"] == {}
    assert said["commit"] == {"broadcast": 4 * said["params"] + said["buffers"]}
    every = by_collective(per_cut(found, prune, {}, said["groups"]))
    assert every["all_reduce"] >= said["cut"]["all_reduce"]
    assert [m.bytes for m in per_commit(found, {})] == [4 * found.start]
