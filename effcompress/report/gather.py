"""Reads the files of a run folder into one frozen ``Record``, from which page and card are made."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from effcompress.errors import RunError
from effcompress.record import events
from effcompress.record.events import of_type
from effcompress.record.kind_labels import of
from effcompress.record.status import status
from effcompress.report.paths import label_without_folders, recipe_without_folders, without_folders
from effcompress.types import Cut, axis_kind

RESOLVED = "recipe.resolved.yaml"
"""The recipe of a run with every value, from which it can be continued."""


@dataclass(frozen=True)
class Record:
    """The events of a run by kind, in their order. None or empty: not that far, or not recorded."""

    run: events.Run | None
    steps: tuple[events.Step, ...] = ()
    cuts: tuple[events.Cut, ...] = ()
    stages: tuple[events.Stage, ...] = ()
    mixtures: tuple[events.Mixture, ...] = ()
    gates: tuple[events.Gates, ...] = ()
    absorbed: events.Absorbed | None = None
    allocation: events.Allocation | None = None
    latency: events.Latency | None = None
    search: events.Search | None = None
    sparsified: events.Sparsify | None = None
    rotated: events.Rotated | None = None
    before: events.Evaluation | None = None
    after: events.Evaluation | None = None
    sizes: tuple[events.Size, ...] = ()
    """Models at sizes that the run passed, the largest first."""
    calibrations: tuple[events.Calibration, ...] = ()
    export: events.Export | None = None
    proof: events.Proof | None = None
    exports: tuple[events.Exported, ...] = ()
    """What ``effcompress export`` wrote later, from ``exports.jsonl``."""
    warnings: tuple[str, ...] = ()
    commit_difference: float | None = None
    """Largest change of a logit when masked units were cut out of the tensors."""
    costs: tuple[events.Costly, ...] = ()
    """All events of pruning whose time and memory are recorded."""
    end: events.End | None = None
    plans: tuple[Cut, ...] = ()
    """What each cut removed, from ``plans.jsonl``."""
    widths: Mapping[str, int] = field(default_factory=dict[str, int])
    """Axis -> units now."""
    recipe: str = ""
    phase: str = ""
    """What a process did with the run when its record was read; empty where none did."""
    seconds_left: float | None = None
    """Of that phase or of training, as far as that is known."""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.run.name if self.run else "run"

    @property
    def params_before(self) -> int | None:
        """Parameters of the source model, without biases that were added for a repair."""
        return (self.run.source_params or self.run.params) if self.run else None

    @property
    def params_after(self) -> int | None:
        """Parameters now."""
        if self.end and self.end.params:
            return self.end.params
        sliced = [self.rotated] if self.rotated else []
        latest = [*sliced, *self.cuts[-1:], *self.steps[-1:]]
        return max(latest, key=lambda event: event.step).params if latest else self.params_before

    @property
    def target(self) -> int | None:
        """Parameters that the recipe asks for."""
        return self.run.target_params if self.run else None

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return max([0, *(s.tokens for s in self.steps), *(c.tokens for c in self.cuts)])

    @property
    def cutting_seconds(self) -> float:
        """Seconds that cuts and commits took."""
        spent = (e for e in self.costs if isinstance(e, events.Cut | events.Commit))
        return sum(event.seconds or 0.0 for event in spent)

    @property
    def status(self) -> str:
        """``success``, ``failed``, ``stopped`` or ``unfinished``."""
        return self.end.status if self.end else "unfinished"

    @property
    def started_widths(self) -> Mapping[str, int]:
        """Axis -> units of the source model."""
        return self.run.widths if self.run else {}


EXPORTS = "exports.jsonl"
"""File of a run folder with a line for everything that was exported from it later."""


def gather(folder: Path) -> Record:
    """Reads the files of a run folder; of absolute paths in them only the last part. Raises
    RunError where no record can be read.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise RunError(
            "this folder holds no run: metrics.jsonl is missing",
            where=str(folder),
            fix="Name the folder of a run, e.g. runs/quickstart.",
        )
    recipe = folder / RESOLVED
    found = events.read(folder / "metrics.jsonl")
    plans = events.read_plans(folder / "plans.jsonl")
    run = next(iter(of_type(found, events.Run)), None)
    run = run and replace(run, model=label_without_folders(run.model))
    end = next(iter(of_type(found, events.End)[-1:]), None)
    end = end and replace(end, reason=end.reason and without_folders(end.reason))
    saved = next(iter(of_type(found, events.Export)[-1:]), None)
    evaluations = {event.when: event for event in of_type(found, events.Evaluation)}
    moved = [event.max_logit_difference for event in of_type(found, events.Commit)]
    warnings = [event.text for event in of_type(found, events.Warn)]
    if approximate := of_type(found, events.Approximate):
        # Removals that changed more than what the removed units did.
        most = max(event.max_logit_difference for event in approximate)
        kinds = dict.fromkeys(axis_kind(name) for event in approximate for name in event.sets)
        named = ", ".join(of(kind).plural for kind in kinds)
        warnings.append(
            f"Removing {named} rescaled what stays, because a norm spans all of them: logits moved "
            f"by up to {most:.2g} more than by their absence alone."
        )
    # Widths of a run that has not recorded its final ones: those of the start, less the plans.
    gone = Counter[str]()
    for cut in plans:
        gone.update({name: len(units) for name, units in cut.plan.items()})
    left = {name: width - gone[name] for name, width in (run.widths if run else {}).items()}
    now = status(folder)
    return Record(
        run=run,
        steps=of_type(found, events.Step),
        cuts=of_type(found, events.Cut),
        stages=of_type(found, events.Stage),
        mixtures=of_type(found, events.Mixture),
        gates=of_type(found, events.Gates),
        allocation=next(iter(of_type(found, events.Allocation)[-1:]), None),
        latency=next(iter(of_type(found, events.Latency)[-1:]), None),
        absorbed=next(iter(of_type(found, events.Absorbed)[-1:]), None),
        search=next(iter(of_type(found, events.Search)), None),
        sparsified=next(iter(of_type(found, events.Sparsify)), None),
        rotated=next(iter(of_type(found, events.Rotated)), None),
        before=evaluations.get("before"),
        after=evaluations.get("after"),
        sizes=of_type(found, events.Size),
        calibrations=of_type(found, events.Calibration),
        export=saved and replace(saved, why=without_folders(saved.why)),
        proof=next(iter(of_type(found, events.Proof)[-1:]), None),
        exports=of_type(events.read(folder / EXPORTS), events.Exported),
        warnings=tuple(map(without_folders, warnings)),
        commit_difference=max((d for d in moved if d is not None), default=None),
        costs=tuple(event for event in found if isinstance(event, events.Costly)),
        end=end,
        plans=tuple(plans),
        widths=(end and end.widths) or left,
        recipe=recipe_without_folders(recipe.read_text("utf-8")) if recipe.is_file() else "",
        phase=now.now.phase if now.now and now.state == "running" else "",
        seconds_left=now.seconds_left,
    )


def replaced(record: Record, exported: events.Exported) -> Record:
    """Returns the record as if the run had saved its model as this later export did."""
    proven, difference = record.proof, exported.max_logit_difference
    made = events.Export(
        form=exported.form,
        container=exported.container or "",
        why=exported.why,
        parameters=exported.parameters or 0,
        bytes=exported.bytes,
    )
    if difference is not None:
        proven = events.Proof(
            max_logit_difference=difference,
            tokens_equal=True,  # else the export would have failed
            cache_equal=True,
            seconds=exported.seconds,
        )
    return replace(record, export=made, proof=proven)
