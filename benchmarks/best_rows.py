"""What ``best.py`` tries: pruning while training and one change of it each, and the same estimator
used at once, each with the reason written down before anything is run. What a change gives is in
``docs/results/best_tuning.csv``, bad results included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from efficientllm_rows import DYNAMIC, FOLLOWING, KD_LM, ONCE, REFIT, ROWS, TAYLOR, Row

FLAGSHIP = "one_shot once"
"""The row of ``efficientllm_rows.ROWS`` that the page compares with the rivals: the best of what
the sweep has been through. Another one is a row there, and its name here.
"""
LOOP = "B"
"""The row that candidates change, and that the sweep compares them with."""
BASE = ROWS[LOOP]
SCRATCH = "from scratch, A's shape"
TUNED_ON = 3
"""Seed of all sweeps; the tables have 0, 1 and 2."""


@dataclass(frozen=True)
class Change:
    """One thing done otherwise than in the row it starts from, and why it might help."""

    reason: str
    row: Row


def _but(*sets: str, reason: str, row: Row = BASE) -> Change:
    """``row`` with these values set otherwise."""
    return Change(reason, replace(row, sets=(*row.sets, *sets)))


def _once(*sets: str, reason: str, rate: str = "2e-4") -> Change:
    """Cut at once by the loop's estimator, with these values set otherwise."""
    return Change(reason, Row("a", (*ONCE, f"train.learning_rate.peak={rate}", *sets), "tokens"))


def _rate(peak: str) -> str:
    return f"train.learning_rate.peak={peak}"


HEADS_FIRST = (
    "prune.space=[{name: attention, scope: global, until: 10%}, "
    "{name: ffn, scope: global, minimum: 128, round_to: 8, after: 10%}]"
)
CHANNELS_FIRST = (
    "prune.space=[{name: attention, scope: global, after: 15%}, "
    "{name: ffn, scope: global, minimum: 128, round_to: 8}]"
)
LOCKSTEP = "prune.space=[{name: attention, scope: lockstep}, {name: ffn, scope: lockstep}]"
TEACHER = "train.distill={text_weight: 1.0}"

CHANGES: dict[str, Change] = {
    LOOP: Change("what the others are compared with", BASE),
    # The teacher.
    "KD and LM throughout": _but(
        TEACHER,
        reason="published recipes distil, best with the text's loss beside (SlimQwen, 2605.08738); "
        "saliency is then that of this loss, which says what the source model needs",
    ),
    "KD alone throughout": _but(
        "train.distill={}",
        reason="Minitron's loss (2407.14679): no text's loss to overfit to few tokens",
    ),
    "KD at half weight": _but(
        "train.distill={text_weight: 2.0}",
        reason="at 20k tokens the text itself taught faster than the source (recovery.md)",
    ),
    # A refit at the end of pruning. (At commits it would read the text once for every commit.)
    "refit at the end": _but(
        "prune.refit=least_squares",
        "prune.measure.refit_sequences=64",
        reason="the loop ends with a stream that is no longer the source's; a fit with damping "
        "chosen on held-out text may put it back in one step",
    ),
    "refit at the end, damp 1": _but(
        "prune.refit={name: least_squares, damp: 1.0}",
        "prune.measure.refit_sequences=64",
        reason="the quickstart's damping: near the weights that training has found",
    ),
    # When and how long to prune.
    **{
        f"pruning {percent} % of the tokens": Change(reason, replace(BASE, pruning=percent))
        for percent, reason in (
            (10, "more tokens at the final size"),
            (20, "more tokens at the final size"),
            (45, "smaller cuts, each with more steps of training behind it"),
            (60, "smaller cuts, each with more steps; IDEA-Prune (2503.05920) prunes longest"),
        )
    },
    "a cut every 2 steps": _but(
        "prune.schedule.every=2", reason="smaller cuts: each repair is a smaller extrapolation"
    ),
    "a cut every 8 steps": _but(
        "prune.schedule.every=8", reason="saliency of more steps decides each cut"
    ),
    # The learning rate.
    "one cosine": _but(
        "train.learning_rate={peak: 2e-4, schedule: cosine, warmup: 5%}",
        reason="IDEA-Prune (2503.05920): one cosine over pruning and recovery",
    ),
    "rate 1e-4": _but(_rate("1e-4"), reason="small batches forget (quickstart: 7e-5 was best)"),
    "rate 3e-4": _but(_rate("3e-4"), reason="118 steps are few; a higher rate goes further"),
    "rate 4e-4": _but(_rate("4e-4"), reason="118 steps are few; a higher rate goes further"),
    "rate warmed up again, moments dropped": _but(
        "train.continued={learning_rate: {peak: 2e-4, schedule: trapezoidal, warmup: 10%, "
        "decay: 50%}}",
        reason="moments of the shrinking model may not fit the final one; a training of its own "
        "begins with a warm-up",
    ),
    # What goes.
    "heads first": _but(HEADS_FIRST, reason="a lost head needs the longest training behind it"),
    "channels first": _but(CHANNELS_FIRST, reason="cheap cuts first, heads when saliency settled"),
    "lockstep widths": _but(
        LOCKSTEP, reason="less freedom to overfit few tokens' saliency; a stock class comes out"
    ),
    # What decides.
    "saliency of 33 steps": _but(
        "prune.measure.decay=0.97", reason="a running mean over 10 steps of 512 tokens is noisy"
    ),
    "saliency of 3 steps": _but(
        "prune.measure.decay=0.7", reason="after a cut, old gradients are those of another model"
    ),
    "Taylor": _but(*TAYLOR, reason="first order: cheap, and the published choice"),
    "second moments of 20 steps more": _but(
        "prune.measure.gram_decay=0.98", reason="1536 inputs need more than 20 x 256 tokens"
    ),
    "update damped by 0.1": _but(
        "prune.repair=[norm_gain, {name: obs_update, damp: 0.1}]",
        reason="few tokens: the update may learn them by heart, as the refit did",
    ),
    "dynamic mixture": _but(*DYNAMIC, reason="1.8 % better with one seed (efficientllm.md)"),
    "no weight decay": _but("train.weight_decay=0", reason="nothing to regularise in 118 steps"),
    "batches of one sequence": _but(
        "train.batch_size=1", reason="twice as many steps for the same tokens"
    ),
    # At once, as well as it can be done: the loop has to beat this.
    "once": _once(reason="what the loop has to beat"),
    "once, refit": _once(*REFIT, reason="damping chosen on held-out text, not yet trained on"),
    "once, refit damp 1, low rate": _once(
        "prune.refit={name: least_squares_bias, damp: 1.0}",
        rate="7e-5",
        reason="the quickstart's choice: a refit is kept by a low rate",
    ),
    "once, refit, rate 1e-4": _once(
        *REFIT, rate="1e-4", reason="half way to the low rate that keeps a refit"
    ),
    "once, refit, rate 4e-4": _once(
        *REFIT, rate="4e-4", reason="the refit has put back what a high rate would destroy?"
    ),
    "once, refit to 256 sequences": _once(
        *REFIT,
        "prune.measure.refit_sequences=256",
        reason="four times the text: 1,536 inputs are fitted to 65,536 tokens, not 16,384",
    ),
    "once, refit to 32 sequences": _once(
        *REFIT,
        "prune.measure.refit_sequences=32",
        reason="at equal operations a refit of a quarter of the text leaves more for training",
    ),
    "once, refit, batches of one sequence": _once(
        *REFIT, "train.batch_size=1", reason="twice as many steps for the same tokens"
    ),
    "once, refit, dynamic mixture": _once(
        *REFIT, *DYNAMIC, reason="1.8 % better with B and one seed (efficientllm.md)"
    ),
    "once, refit, mixture by training losses": _once(
        *REFIT,
        *FOLLOWING,
        reason="a mixture that follows held-out losses takes a seventh of all operations",
    ),
    "in 3 rounds, a refit behind each": _once(
        *REFIT,
        "prune.refit_at=commits",
        "prune.schedule.rounds=3",
        reason="each cut is measured on a model whose stream is the source's again; three times "
        "the calibration",
    ),
    "once, refit, low rate": _once(
        *REFIT, rate="7e-5", reason="a refit is kept by a low rate, forgotten by a high one"
    ),
    "once, refit, KD and LM": Change(
        "the source model's predictions hold what the refit has put back",
        Row("a", (*ONCE, *REFIT, *KD_LM), "recover"),
    ),
}
"""Name -> what is changed of the loop, or of its estimator used at once."""


def _rival(name: str, peak: str) -> tuple[str, Change]:
    section = "recover" if ROWS[name].trains == "recover" else "train"
    sets = (f"{section}.learning_rate.peak={peak}",)
    reason = "a rival at its best: the rate is tuned as ours is"
    return f"{name}, rate {peak}", _but(*sets, reason=reason, row=ROWS[name])


RIVALS: dict[str, Change] = dict(
    _rival(name, peak)
    for name in (
        "LLM-Pruner once",
        "FLAP once",
        "Minitron once + KD",
        "Minitron once + KD and LM",
        "Adapt-Accel",
    )
    for peak in ("1e-4", "2e-4", "4e-4")
)
"""The same for rows of methods that others have published."""
EVERY: dict[str, Change] = {**CHANGES, **RIVALS}
NOT_TRIED = {
    "rate by FLOPs rather than parameters": "no selector divides by operations",
    "a refit at every commit of the loop": "one takes 0.44 of the operations of 60,000 tokens",
    "moments rescaled at commits": "they are cut with the weights, which is the base; or dropped",
    "weight of the teacher annealed": "its weight is one number",
    "layers, too": "the update cannot repair them, and no mixed ranking of them was tried",
    "several passes over little text": "domains have no limit of text but their own",
}
"""Candidates of the plan that no recipe can express yet, and why."""
