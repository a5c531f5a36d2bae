"""Time and peak memory of a part of a run."""

from __future__ import annotations

import sys

import pytest
import torch

from effcompress.runner.meter import Meter

CPU = torch.device("cpu")
MEBI = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the process")
def test_the_peak_is_that_of_the_part_and_not_of_what_came_before() -> None:
    torch.zeros(128 * MEBI).add_(1)  # 512 MiB that are given back at once
    quiet = Meter(CPU)
    before = quiet.read().memory_bytes
    loud = Meter(CPU)
    torch.zeros(64 * MEBI).add_(1)
    peak = loud.read().memory_bytes
    assert before is not None and peak is not None
    assert 200 * MEBI < peak - before < 300 * MEBI
    again = Meter(CPU).read().memory_bytes
    assert again is not None and again < peak - 200 * MEBI


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("effcompress.runner.meter.PROCESS", tmp_path / "none")
    spent = Meter(CPU).read()
    assert spent.memory_bytes is None or spent.memory_bytes > MEBI
    assert spent.seconds >= 0
