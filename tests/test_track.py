"""Trackers see what the record says, once, and can neither change a run nor end it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from effcompress import load_recipe, run
from effcompress.runner import run as story
from effcompress.runner.preflight import installed
from effcompress.track import view
from effcompress.track.trackers import OPEN, Opened, Place
from tests.distributed.test_two_processes import together
from tests.runner.toys import events
from tests.runner.toys import recipe as toy
from tests.test_track_offline import watched

TENSORBOARD = ["track.to=[tensorboard]"]
NUMBERS = ("loss", "learning_rate", "grad_norm", "params", "tokens", "flops", "tokens_per_second")
Curves = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run without trackers."""
    folder = tmp_path_factory.mktemp("unwatched")
    run(load_recipe(toy(folder)), output=folder / "out")
    return folder / "out"


def shown(folder: Path) -> Curves:
    """Name -> step -> value, as TensorBoard reads it. A point that is there twice is a failure."""
    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    found: Curves = {}
    for name in reader.Tags()["scalars"]:
        points = [(point.step, point.value) for point in reader.Scalars(name)]
        found[name] = dict(points)
        assert len(found[name]) == len(points), f"{name}: {points}"
    return found


def recorded(folder: Path) -> Curves:
    """The same from the record; where a step trained and cut, its size is the one after the cut."""
    steps, cuts = events(folder, "step"), events(folder, "cut")
    keys = {"params": "parameters"}
    found: Curves = {
        keys.get(key, key): {step["step"]: step[key] for step in steps} for key in NUMBERS
    }
    for domain in ("letters", "numbers"):
        found[f"loss/{domain}"] = {
            s["step"]: s["domain_loss"][domain] for s in steps if domain in s["domain_loss"]
        }
        for at, one in zip((0, steps[-1]["step"]), events(folder, "evaluation"), strict=True):
            curve = f"perplexity/{domain}/{one['when']}"
            found[curve] = {at: one["domains"][domain]["perplexity"]}
    for cut in cuts:
        found["parameters"][cut["step"]] = cut["params"]
        for kind, share in cut["share_removed"].items():
            found.setdefault(f"removed/{kind}", {})[cut["step"]] = share
    return found


def assert_same(one: Curves, other: Curves) -> None:
    assert one.keys() == other.keys()
    for name, points in other.items():
        assert one[name] == pytest.approx(points, rel=1e-6), name  # files hold fp32


def test_tensorboard_shows_what_the_record_says(tmp_path: Path, unwatched: Path) -> None:
    out = tmp_path / "out"
    run(load_recipe(toy(tmp_path), TENSORBOARD), output=out)
    curves = shown(out)
    assert len(curves["loss"]) == 20 and "removed/ffn" in curves
    assert_same(curves, recorded(out))
    for file in ("model.safetensors", "plans.jsonl"):
        assert (out / file).read_bytes() == (unwatched / file).read_bytes()
    reader = EventAccumulator(str(out / "tensorboard")).Reload()
    table = reader.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| `train.batch_size` | 4 |" in table
    assert f"| `run.model_hash` | {events(out, 'run')[0]['model_hash']} |" in table


@pytest.mark.parametrize("first", [TENSORBOARD, []], ids=["watched", "not watched at first"])
def test_resumed_every_point_is_there_once(
    tmp_path: Path, unwatched: Path, monkeypatch: pytest.MonkeyPatch, first: list[str]
) -> None:
    """The last checkpoint is that of step 8. A recipe that differs in who looks is no other."""
    path, out, step = toy(tmp_path), tmp_path / "out", story.train_step

    def dies(state: Any, *given: Any) -> bool:
        if state.step == 11:
            raise RuntimeError("pulled the plug")
        return step(state, *given)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="pulled the plug"):
        patched.setattr(story, "train_step", dies)
        run(load_recipe(path, first), output=out)
    if first:
        assert max(shown(out)["loss"]) == 11
    run(load_recipe(path, TENSORBOARD), output=out, resume=True)
    assert_same(shown(out), recorded(out))
    assert (out / "model.safetensors").read_bytes() == (
        unwatched / "model.safetensors"
    ).read_bytes()


class Broken:
    """A tracker that fails in one of its methods, from the third call on."""

    def __init__(self, method: str) -> None:
        self.method, self.calls = method, 0

    def __getattr__(self, name: str) -> Any:
        return self._call if name == self.method else lambda *given, **named: None

    def _call(self, *given: Any, **named: Any) -> None:
        self.calls += 1
        if self.method != "log" or self.calls >= 3:
            raise OSError("the disk is on fire\nand more")


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_left_alone(
    tmp_path: Path,
    unwatched: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    broken, out = Broken(method), tmp_path / "out"

    def opened(_: Place) -> Opened:
        broken.start()
        return Opened(broken)

    monkeypatch.setitem(OPEN, "wandb", opened)
    run(load_recipe(toy(tmp_path), ["track.to=[wandb, tensorboard]"]), output=out)
    words = "wandb is shown nothing more, the run goes on without it: the disk is on fire"
    # What fails at the very end is said, but the record has ended.
    said = [words] if method != "finish" else []
    before = [warning["text"] for warning in events(unwatched, "warning")]
    assert sorted(w["text"] for w in events(out, "warning")) == sorted([*before, *said])
    assert capsys.readouterr().err.count(words) == 1
    assert broken.calls == (3 if method == "log" else 1)
    assert_same(shown(out), recorded(out))  # the other one saw all
    assert (out / "model.safetensors").read_bytes() == (
        unwatched / "model.safetensors"
    ).read_bytes()


def test_nobody_waits_for_a_tracker_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(view, "LONGEST", 0.1)
    monkeypatch.setitem(OPEN, "wandb", lambda _: over.wait(60))
    log = watched(tmp_path, "wandb")
    log.rewind({})
    log.close()
    over.set()
    [warning] = events(tmp_path, "warning")
    assert "wandb is shown nothing more" in warning["text"] and "no answer" in warning["text"]


def test_accelerate_has_no_say_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state would join those that the environment speaks of, and set device and threads."""
    monkeypatch.setattr(PartialState, "__init__", lambda *_, **__: pytest.fail("made a state"))
    opened = OPEN["tensorboard"](Place(tmp_path, "toy", "toys", offline=False))
    opened.configure({"seed": 3})
    opened.tracker.log({"loss": 2.0}, step=1)
    opened.tracker.finish()
    assert shown(tmp_path) == {"loss": {1: 2.0}}


def test_of_two_processes_one_is_tracked(tmp_path: Path) -> None:
    job = {"recipe": toy(tmp_path), "output": tmp_path / "out", "set": TENSORBOARD, "bare": True}
    code, said = together([job], tmp_path)
    assert code == 0, said
    assert len([*(tmp_path / "out" / "tensorboard").iterdir()]) == 1
    assert_same(shown(tmp_path / "out"), recorded(tmp_path / "out"))


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_package_that_is_missing_is_refused(tmp_path: Path, command: str) -> None:
    path = toy(tmp_path, extra="track:\n  to:\n    - tensorboard\n    - trackio\n")
    code = (
        "import sys\n"
        "sys.modules['trackio'] = None\n"
        "from effcompress.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(code, [name for name in ('accelerate', 'tensorboard') if name in sys.modules])\n"
        "print(sys.argv[1], 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *_, code, loaded = done.stdout.splitlines()
    assert code == "2 []" and loaded != "check True"
    line = path.read_text().splitlines().index("    - trackio") + 1
    assert f"error: {path}:{line}: track.to.1: trackio is not installed\n" in done.stderr
    assert "pip install trackio" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B leaves a folder of its own name where it runs, and `python -m` looks there first."""
    (tmp_path / "tracks_all").mkdir()
    (tmp_path / "tracks_some").mkdir()
    (tmp_path / "tracks_some" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    here = {name: installed(name) for name in ("tracks_all", "tracks_some", "tracks_none")}
    assert here == {"tracks_all": False, "tracks_some": True, "tracks_none": False}
