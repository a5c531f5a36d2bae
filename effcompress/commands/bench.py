"""``effcompress bench``: prefill and decode speed of a model, beside its source model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effcompress.answer import Answer, Table
from effcompress.commands.memory_probe import Job, footprint
from effcompress.errors import RecipeError
from effcompress.model.cache import cache_root
from effcompress.recipe import LoadedRecipe
from effcompress.record.log import make_view
from effcompress.runner.folder import opened
from effcompress.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effcompress.evaluation.speed import Timing

Target = LoadedRecipe | Path


@dataclass(frozen=True)
class Workload:
    """What is measured: batch sizes, prompt tokens, tokens to generate, measured rounds, threads
    (0: torch's default).
    """

    batches: tuple[int, ...] = (1, 8)
    prompt: int = 128
    new: int = 64
    repeats: int = 3
    threads: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class Side:
    """One of the models, by its name in tables; ``bytes``: weights on disk, None if random."""

    name: str
    source: str
    module: nn.Module
    bytes: int | None

    def facts(self) -> dict[str, Any]:
        """Returns plain JSON values; parameters include padding, and tied ones count once."""
        params = sum(p.numel() for p in self.module.parameters())
        return {"model": self.source, "params": params, "bytes": self.bytes}


def bench(
    target: Target, load: Workload, *, against: Target | None = None, offline: bool = False
) -> Answer:
    """Measures prefill and decode in tokens per second, peak memory, size on disk, parameters.

    ``against`` is measured beside ``target`` and listed first; by default the source model of a
    run, and nothing for a recipe. Raises RecipeError where a model has fewer positions than the
    workload needs, SourceError for a folder that holds no run.
    """
    import torch

    from effcompress.runner.state import device_of

    recipe = opened(target)[0].recipe
    named = _named(target, against)
    view = make_view(interactive=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(load.threads or before)
        load = dataclasses.replace(load, threads=torch.get_num_threads())
        device = device_of(recipe)
        sides = [
            _side(name, spec, recipe.seed, load, device, offline, view.note) for name, spec in named
        ]
        timings = _race(sides, load, recipe.seed, device, view.note)
        described = {side.name: side.facts() for side in sides}
        sides.clear()  # frees the memory for the process that loads the models again
        memory = _memory(named, load, recipe.seed, str(device))
    finally:
        torch.set_num_threads(before)
        view.close()
    facts = {
        "sides": {name: {**one, "peak_memory": memory[name]} for name, one in described.items()},
        "speeds": _speeds(load, timings),
        "protocol": _protocol(load, str(device)),
    }
    return _answer(facts)


def _race(
    sides: Sequence[Side], load: Workload, seed: int, device: Any, say: Callable[[str], None]
) -> dict[int, dict[str, list[Timing]]]:
    """Returns batch size -> side -> times of each round."""
    from effcompress.evaluation.speed import race

    modules = {side.name: side.module for side in sides}
    found: dict[int, dict[str, list[Timing]]] = {}
    for batch in load.batches:
        say(f"batch {batch}: {load.repeats} rounds after one to warm up")
        ids_BT = _prompt(sides, batch, load, seed).to(device)
        found[batch] = race(modules, ids_BT, load.new, load.repeats)
    return found


def _named(target: Target, against: Target | None) -> list[tuple[str, ModelSpec]]:
    """Returns the models to measure by their names in tables, the reference first."""
    loaded, spec = opened(target)
    run = isinstance(target, Path)
    if against is None:
        return [("dense", loaded.recipe.model), ("pruned", spec)] if run else [("dense", spec)]
    names = [_name(against), _name(target)]
    if names[0] == names[1]:
        names = [f"{names[0]} (1)", f"{names[1]} (2)"]
    return [(names[0], opened(against)[1]), (names[1], spec)]


def _name(target: Target) -> str:
    return target.resolve().name if isinstance(target, Path) else target.recipe.name


def _side(
    name: str,
    spec: ModelSpec,
    seed: int,
    load: Workload,
    device: Any,
    offline: bool,
    say: Callable[[str], None],
) -> Side:
    import torch

    from effcompress.model.fetch import ensure
    from effcompress.model.load import load as load_model

    model = load_model(spec, seed=seed, offline=offline, progress=say)
    module = model.module.to(device, getattr(torch, load.dtype)).eval()
    config: Any = module.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and load.prompt + load.new > positions:
        raise RecipeError(
            f"{load.prompt} + {load.new} tokens do not fit: {model.source} has {positions} "
            "positions",
            where="bench",
            fix="Ask for a shorter --prompt or for fewer --new tokens.",
        )
    folder = None if spec.random else ensure(spec, cache_root(), offline=True)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) if folder else None
    return Side(name, model.source, module, size)


def _prompt(sides: Sequence[Side], batch: int, load: Workload, seed: int) -> Tensor:
    """Random tokens ``[B, T]`` of the smallest vocabulary; their values do not affect the time."""
    import torch

    configs: list[Any] = [side.module.config for side in sides]
    vocabulary = min(int(config.vocab_size) for config in configs)
    shape, dice = (batch, load.prompt), torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, shape, generator=dice)


def _memory(
    named: Sequence[tuple[str, ModelSpec]], load: Workload, seed: int, device: str
) -> dict[str, dict[int, int | None]]:
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    how = (load.batches, load.prompt, load.new, load.threads, device, load.dtype)
    return {name: footprint(Job(spec, seed, *how)) for name, spec in named}


def _speeds(load: Workload, timings: dict[int, dict[str, list[Timing]]]) -> list[dict[str, Any]]:
    """Returns one entry per batch size and phase: rates by side, the second side's speed-up."""
    from effcompress.evaluation.speed import PHASES, rate, speed_up

    found: list[dict[str, Any]] = []
    for batch, by_side in timings.items():
        for phase in PHASES:
            tokens = batch * (load.prompt if phase == "prefill" else load.new - 1)
            rates = {
                name: dataclasses.asdict(rate(rounds, phase, tokens))
                for name, rounds in by_side.items()
            }
            rounds = [*by_side.values()]
            ratio = speed_up(rounds[1], rounds[0], phase) if len(rounds) > 1 else None
            one = {"batch": batch, "phase": phase, "rates": rates}
            found.append({**one, "speed_up": ratio and dataclasses.asdict(ratio)})
    return found


def _protocol(load: Workload, device: str) -> dict[str, Any]:
    import torch

    return {
        "prompt": load.prompt,
        "new": load.new,
        "rounds": load.repeats,
        "warm-up": "1 round",
        "order": "in turns",
        "decoding": "greedy, KV cache",
        "threads": load.threads,
        "device": device,
        "dtype": load.dtype,
        "torch": torch.__version__,
    }


def _answer(facts: dict[str, Any]) -> Answer:
    notes = [f"{name}: {side['model']}" for name, side in facts["sides"].items()]
    notes.append(", ".join(f"{key} {value}" for key, value in facts["protocol"].items()))
    return Answer(facts, (_rates(facts), _sizes(facts)), tuple(notes))


def _rates(facts: dict[str, Any]) -> Table:
    sides = [*facts["sides"]]
    rows = []
    for one in facts["speeds"]:
        cells = [_range(one["rates"][name], _tokens) for name in sides]
        cells += [_range(one["speed_up"], "{:.2f}".format)] if one["speed_up"] else []
        rows.append((str(one["batch"]), one["phase"], *cells))
    columns = ["batch", "phase", *sides, *(["times as fast"] if len(sides) > 1 else [])]
    title = "Tokens per second: median (lowest-highest round)"
    return Table(title, tuple(columns), tuple(rows))


def _range(spread: dict[str, float], said: Callable[[float], str]) -> str:
    return f"{said(spread['median'])} ({said(spread['low'])}-{said(spread['high'])})"


def _tokens(value: float) -> str:
    return f"{value / 1e3:,.0f}k" if value >= 1e4 else f"{value:,.{1 if value < 100 else 0}f}"


def _sizes(facts: dict[str, Any]) -> Table:
    sides = [*facts["sides"].values()]
    numbers: dict[str, list[int | None]] = {
        "parameters": [side["params"] for side in sides],
        "weights on disk, MB": [side["bytes"] for side in sides],
    }
    for batch in sides[0]["peak_memory"]:
        label = f"peak memory at batch {batch}, MB"
        numbers[label] = [side["peak_memory"][batch] for side in sides]
    rows = []
    for label, values in numbers.items():
        scale, form = (1e6, ",.1f") if label.endswith("MB") else (1, ",.0f")
        cells = ["" if value is None else f"{value / scale:{form}}" for value in values]
        if len(values) > 1:
            before, after = values[:2]
            cells.append(f"{after / before:.2f}" if before and after else "")
        rows.append((label, *cells))
    columns = ["", *facts["sides"], *(["ratio"] if len(sides) > 1 else [])]
    return Table("Size", tuple(columns), tuple(rows))
