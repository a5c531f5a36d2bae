"""What a GPU changes: each test takes a device. On the CPU it runs in every suite; on a GPU where
there is one (``pytest -m gpu``), and else it says what it needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from effcompress import load_recipe, run
from tests.runner.toys import recipe

NEEDS = {1: "needs a CUDA device", 2: "needs two CUDA devices"}
SHORT = (
    "train.tokens=768",
    "prune.schedule={name: continuous, every: 1, start: 256, groups: 4}",
    "prune.repair=[norm_gain, obs_update]",
    "evaluate.sequences=2",
)
"""Six steps with cuts from the second on, repairs by second moments, export and proof."""
Ran = Callable[..., Path]


def require_gpus(count: int) -> None:
    """Skips the test where there are fewer."""
    if torch.cuda.device_count() < count:
        pytest.skip(NEEDS[count])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn."""
    if request.param == "cuda":
        require_gpus(1)
    return request.param


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A function that runs the toy on a device, with what is overruled: the folder of the run. Each
    runs once.
    """
    folder = tmp_path_factory.mktemp("gpu")
    path, done, number = recipe(folder), dict[tuple[str, ...], Path](), itertools.count()

    def on(device: str, *sets: str) -> Path:
        key = (device, *sets)
        if key not in done:
            out = folder / f"{device}-{next(number)}"
            run(load_recipe(path, [*SHORT, *sets, f"device={device}"]), output=out)
            done[key] = out
        return done[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(1)
        yield on
