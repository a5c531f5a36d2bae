"""Time and peak memory of a part of a run."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from effcompress.runner.resources import Meter

CPU = torch.device("cpu")
MEBI = 1 << 20


ALONE = """
import torch
from effcompress.runner.resources import Meter
CPU, MEBI = torch.device("cpu"), 1 << 20
torch.zeros(128 * MEBI).add_(1)  # 512 MiB that are given back at once
before = Meter(CPU).read().memory_bytes
loud = Meter(CPU)
torch.zeros(64 * MEBI).add_(1)
peak = loud.read().memory_bytes
assert 200 * MEBI < peak - before < 300 * MEBI, (before, peak)
again = Meter(CPU).read().memory_bytes
assert again < peak - 200 * MEBI, (again, peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the process")
def test_the_peak_is_that_of_the_part_and_not_of_what_came_before() -> None:
    """In a process of its own: one that has run other tests may have room left from them."""
    subprocess.run([sys.executable, "-c", ALONE], check=True)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("effcompress.processes.PROCESS", tmp_path / "none")
    spent = Meter(CPU).read()
    assert spent.memory_bytes is None or spent.memory_bytes > MEBI
    assert spent.seconds >= 0
