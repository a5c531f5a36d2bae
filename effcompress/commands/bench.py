"""``effcompress bench``: prefill and decode speed of a model, beside its source model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effcompress.answer import Answer, Json, Table
from effcompress.commands.memory_probe import Job, footprint
from effcompress.errors import RecipeError
from effcompress.model.cache import cache_root
from effcompress.recipe import LoadedRecipe
from effcompress.record.log import make_view
from effcompress.runner.folder import opened
from effcompress.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from effcompress.estimate.allocation import LatencyTable
    from effcompress.evaluation.speed import Spread, Timing
    from effcompress.model.load import LoadedModel

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
    """One of the models, loaded; ``name`` in tables; ``bytes``: weights on disk, None if random."""

    name: str
    source: str
    module: nn.Module
    bytes: int | None


@dataclass(frozen=True)
class Size:
    """The size of a model: parameters (with padding, tied ones once), bytes on disk (None if
    random), and batch size -> bytes of memory at the peak (None where the system does not say).
    """

    model: str
    params: int
    bytes: int | None
    peak_memory: Mapping[int, int | None]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of each side in one phase, and the speed-up of the second side."""

    batch: int
    phase: str
    rates: Mapping[str, Spread]
    speed_up: Spread | None


def bench(
    target: Target, load: Workload, *, against: Target | None = None, offline: bool = False
) -> Answer:
    """Measures prefill and decode in tokens per second, peak memory, size on disk, parameters.

    ``against`` is measured beside ``target`` and listed first; by default the source model of a
    run, and nothing for a recipe. Raises RecipeError where a model has fewer positions than the
    workload needs, SourceError for a folder that holds no run.
    """
    import torch

    from effcompress.model.load import load as load_model
    from effcompress.runner.state import device_of

    recipe = opened(target)[0].recipe
    named = _named(target, against)
    view = make_view(interactive=False)
    before = torch.get_num_threads()
    how: Any = {"seed": recipe.seed, "offline": offline, "progress": view.note}
    try:
        torch.set_num_threads(load.threads or before)
        load = dataclasses.replace(load, threads=torch.get_num_threads())
        device = device_of(recipe)
        sides = [_side(n, spec, load_model(spec, **how), load, device) for n, spec in named]
        timings = _race(sides, load, recipe.seed, device, view.note)
        counts = [sum(p.numel() for p in side.module.parameters()) for side in sides]
        described = [(s.source, n, s.bytes) for s, n in zip(sides, counts, strict=True)]
        sides.clear()  # frees the memory for the process that loads the models again
        if device.type == "cuda":
            torch.cuda.empty_cache()
        asked = (load.batches, load.prompt, load.new, load.threads, str(device), load.dtype)
        memory = {name: footprint(Job(spec, recipe.seed, *asked)) for name, spec in named}
    finally:
        torch.set_num_threads(before)
        view.close()
    peaks = zip(described, memory.items(), strict=True)
    sizes = {name: Size(*one, peak) for one, (name, peak) in peaks}
    protocol: dict[str, Json] = {
        "prompt": load.prompt,
        "new": load.new,
        "rounds": load.repeats,
        "warm-up": "1 round",
        "order": "in turns",
        "decoding": "greedy, KV cache",
        "threads": load.threads,
        "device": str(device),
        "dtype": load.dtype,
        "torch": torch.__version__,
    }
    speeds = _speeds(load, timings)
    notes = [f"{name}: {size.model}" for name, size in sizes.items()]
    notes.append(", ".join(f"{key} {value}" for key, value in protocol.items()))
    sides_data = {name: dataclasses.asdict(size) for name, size in sizes.items()}
    speeds_data = [dataclasses.asdict(speed) for speed in speeds]
    data = {"sides": sides_data, "speeds": speeds_data, "protocol": protocol}
    return Answer(data, (_rates([*sizes], speeds), _sizes(sizes)), tuple(notes))


def latency_table(loaded: LoadedRecipe) -> Answer:
    """Returns the times of attention and FFN at all widths that the recipe's allocation chooses
    from, at its workload: from the cache, or measured now, on a model with random weights.

    Raises RecipeError for a recipe without an allocation and a workload, SourceError where the
    model's configuration is not known here.
    """
    from effcompress.estimate.feasibility import levels_of, sized_model, unknown_model
    from effcompress.runner.latency import Source, levels_by_layer, shaped, table_for
    from effcompress.runner.state import device_of

    prune, found = loaded.recipe.prune, sized_model(loaded)
    if prune is None or prune.allocation is None or prune.workload is None:
        raise RecipeError(
            "the recipe has no table of times: it takes prune.allocation and prune.workload",
            where=str(loaded.path),
            fix="Name a recipe with both (docs/latency.md has one).",
        )
    if found is None:
        raise unknown_model(loaded)
    axes, view = found.axes, make_view(interactive=False)
    try:
        levels = levels_by_layer(axes.depth, axes.widths)
        module = shaped(found.config, axes.family, levels).to(device_of(loaded.recipe))
        source = Source(module, axes, found.config)
        table, known = table_for(source, levels_of(prune, found), prune.workload, view.note)
    finally:
        view.close()
    return _shown(table, known)


def _shown(table: LatencyTable, known: bool) -> Answer:
    """A table for each kind, and what the times depend on."""
    tables = []
    for kind, entries in table.entries.items():
        most = max(entries.values())
        rows = [
            (str(width), f"{s * 1e3:.4g}", f"{s / most:.2f}")
            for width, s in sorted(entries.items(), reverse=True)
        ]
        tables.append(Table(f"{kind}: one block", ("units", "ms", "of the whole"), tuple(rows)))
    of: Any = dict(table.of)
    load = ", ".join(f"{key} {value}" for key, value in of.get("workload", {}).items())
    notes = (
        f"source model: {table.dense * 1e3:.4g} ms",
        load,
        f"{of.get('hardware')}, {of.get('threads')} threads",
        *([table.busy] if table.busy else []),
        "from the cache" if known else "measured now, and kept in the cache",
    )
    entries = {kind: {str(w): s for w, s in e.items()} for kind, e in table.entries.items()}
    data: dict[str, Json] = {"dense": table.dense, "entries": entries, "of": of, "known": known}
    return Answer(data, tuple(tables), notes)


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
    pair = (against, target)
    names = [one.resolve().name if isinstance(one, Path) else one.recipe.name for one in pair]
    if names[0] == names[1]:
        names = [f"{names[0]} (1)", f"{names[1]} (2)"]
    return [(names[0], opened(against)[1]), (names[1], spec)]


def _side(name: str, spec: ModelSpec, model: LoadedModel, load: Workload, device: Any) -> Side:
    import torch

    from effcompress.model.fetch import ensure

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
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (batch, load.prompt), generator=dice)


def _speeds(load: Workload, timings: dict[int, dict[str, list[Timing]]]) -> list[Speed]:
    """Returns one entry per batch size and phase: rates by side, the second side's speed-up."""
    from effcompress.evaluation.speed import PHASES, rate, speed_up

    found: list[Speed] = []
    for batch, by_side in timings.items():
        reference, *others = by_side.values()
        for phase in PHASES:
            tokens = batch * (load.prompt if phase == "prefill" else load.new - 1)
            rates = {name: rate(rounds, phase, tokens) for name, rounds in by_side.items()}
            ratio = speed_up(others[0], reference, phase) if others else None
            found.append(Speed(batch, phase, rates, ratio))
    return found


def _rates(sides: Sequence[str], speeds: Sequence[Speed]) -> Table:
    rows = []
    for speed in speeds:
        cells = [_range(speed.rates[name], _tokens) for name in sides]
        cells += [_range(speed.speed_up, "{:.2f}".format)] if speed.speed_up else []
        rows.append((str(speed.batch), speed.phase, *cells))
    columns = ["batch", "phase", *sides, *["times as fast"][: len(sides) - 1]]
    title = "Tokens per second: median (lowest-highest round)"
    return Table(title, tuple(columns), tuple(rows))


def _range(spread: Spread, said: Callable[[float], str]) -> str:
    return f"{said(spread.median)} ({said(spread.low)}-{said(spread.high)})"


def _tokens(value: float) -> str:
    return f"{value / 1e3:,.0f}k" if value >= 1e4 else f"{value:,.{1 if value < 100 else 0}f}"


def _sizes(found: Mapping[str, Size]) -> Table:
    sizes = [*found.values()]
    numbers: dict[str, list[int | None]] = {
        "parameters": [size.params for size in sizes],
        "weights on disk, MB": [size.bytes for size in sizes],
    }
    for batch in sizes[0].peak_memory:
        label = f"peak memory at batch {batch}, MB"
        numbers[label] = [size.peak_memory[batch] for size in sizes]
    rows = []
    for label, values in numbers.items():
        scale, form = (1e6, ",.1f") if label.endswith("MB") else (1, ",.0f")
        cells = ["" if value is None else f"{value / scale:{form}}" for value in values]
        if len(values) > 1:
            before, after = values[:2]
            cells.append(f"{after / before:.2f}" if before and after else "")
        rows.append((label, *cells))
    columns = ["", *found, *["ratio"][: len(found) - 1]]
    return Table("Size", tuple(columns), tuple(rows))
