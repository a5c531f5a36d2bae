"""What the engine can inject into plugins: the positional parameters of their signatures."""

INPUTS: dict[str, dict[str, str]] = {
    "criterion": {
        "weight": "[O, I] (or [O]) the parameter",
        "grad": "[O, I] its gradient, mean over the batch",
        "hess": "[O, I] diagonal Hessian from the recipe's `hessian`",
        "uniform": "[O, I] random numbers between 0 and 1, others for every parameter and cut; the "
        "same ones whatever the number of processes",
        "mask_grad": "[T, G] derivative of the loss with respect to a mask on each mini-group, for "
        "every token; alone, and then the criterion returns [G]",
        "input_mean": "[I] mean over tokens of what a linear layer reads, for every one that reads "
        "the mini-groups; the criterion then returns [O, I] or [I]. None for layers and blocks",
        "input_norm": "[I] root of the mean of its square",
        "input_variance": "[I] its variance",
        "gram": "[I, I] mean of x x^T over the tokens that the one linear layer reads which reads "
        "the mini-groups. Its columns, and those of `weight`, are then in the order of the "
        "mini-groups, and the criterion returns [G]: the error of the layer once a mini-group and "
        "all with lower values are gone",
        "routed": "[E] number of calibration tokens that the router sends to each expert of a "
        "layer; the criterion, which is one of experts, returns [E]",
        "loss_increase": "[1] by how many nats per token the loss on calibration text rises "
        "without this layer or block (prune.measure.ablation_sequences). None for other kinds",
        "kind": "kind of the mini-groups (attention, ffn, ...)",
        "layer": "number of their layer; -1 where they belong to none",
        "positions": "inputs that a mini-group owns there (a head: its width)",
        "logit": "[G] of the learned gates of one set (of all layers, or blocks); alone, and then "
        "the criterion returns [G]",
    },
    "gate": {
        "logit": "[N] one trained number per gate",
        "uniform": "[N] random numbers between 0 and 1, or None: the gates without noise",
    },
    "constraint": {
        "expected": "[R] expected fraction of gates (or parameters) that are shut, of every row",
        "target": "[R] the fraction wanted now",
        "linear": "multiplier, a number that ascends from 0",
        "quadratic": "another one",
    },
    "reduction": {
        "sums_MG": "[M, G] saliency of every mini-group in each of its M matrices",
        "positions_MGB": "[M, G, B] the same position by position, folded to the B positions that "
        "its narrowest matrix has; the reduction then returns [G, B]",
    },
    "statistic": {
        "x": "[T, I] what a linear layer reads, one calibration sequence, in fp64",
        "before": "[T, hidden] the residual stream in front of a layer or block, in fp64",
        "after": "[T, hidden] the stream behind it",
        "output": "[T, hidden] what one expert returns for the tokens of a sequence that are sent "
        "to it, before the router's weight, in fp64",
        "gate": "[T] the router's weight of that expert, as the model multiplies by it",
        "gates": "[T, K] the router's weights of all experts of these tokens",
        "state": "what the statistic returned for the sequence before, None for the first. Without "
        "`state` it returns one value per token ([T, I] or [T]), and the engine averages; with it "
        "the value so far ([I] or [1]), or a tuple that begins with it",
    },
    "hessian": {
        "weight": "[O, I] the parameter",
        "grad": "[O, I] its gradient on one batch; the engine averages over batches",
        "second_moment": "[O, I] AdamW's running mean of its squared gradient, bias corrected",
    },
    "family": {},
    "space": {"axes": "AxisMap of the model: named axes with their widths"},
    "schedule": {
        "step": "optimizer steps done",
        "tokens": "tokens trained on",
        "total_tokens": "tokens the run will train on",
        "start_params": "parameters before the first cut",
        "params": "parameters now",
        "target_params": "parameters wanted at the end",
        "groups_cut": "mini-groups cut so far (a lockstep tuple or a block counts once)",
        "removed": "kind -> units cut so far (a lockstep tuple counts once, a block all it has)",
        "left": "kind -> mini-groups that may still go, down to the target's shape or a set's "
        "`minimum`. As in `groups_cut`, a lockstep tuple counts once, and so do `round_to` units",
        "positions": "kind -> columns that a unit owns in the projection back into the stream",
        "prune_from": "tokens at which the pruning stage begins (0 without stages)",
        "prune_until": "tokens at which the pruning stage ends (all tokens without stages)",
    },
    "selector": {
        "score_K": "[K] saliency of each candidate: the least salient unit of its set(s)",
        "params_K": "[K] parameters the candidate's removal frees",
        "mean_K": "[K] mean saliency of equally many units alive in the candidate's set(s)",
        "removed_K": "[K] fraction of the candidate's kind removed so far, 0 to 1",
        "removed_after_K": "[K] the same once the candidate, and what finish_on then promises, is "
        "gone",
        "fraction_K": "[K] fraction of the candidate's own set(s) that is gone then; of what there "
        "was when the stage began, where the schedule counts stages",
        "widths_K": "[K] units left in the candidate's set(s)",
        "begun_K": "[K] units in them at the beginning, or when the schedule's stage began",
        "layer_K": "[K] original number of the candidate's layer; -1 for what spans layers",
        "state": "what the selector's `observe` returned for this cut",
    },
    "refit": {
        "weight": "[O, I] of a linear layer that writes into the residual stream",
        "gram": "[I, I] mean of x x^T over the tokens that it reads in the pruned model",
        "cross": "[O, I] mean of t x^T, where t is what it should put out (less its bias) for the "
        "stream to be the source model's",
        "mean": "[I] mean of x; the refit then returns the weight and what its bias gains",
        "target_mean": "[O] mean of t",
    },
    "repair": {
        "gain": "[hidden] effective gain of a norm over the hidden axis",
        "epsilon": "its epsilon",
        "before": "hidden channels before the cut",
        "after": "hidden channels after the cut",
        "weight": "[O, I] of a linear layer that loses inputs (all that share them, stacked)",
        "gram": "[I, I] running mean of x x^T over the tokens that it read",
        "mean": "[I] running mean of x; the repair then returns the weight and what its bias gains",
        "gone": "[p] which of the inputs go",
        "output_mean": "[hidden] mean of what an expert that goes returns for the calibration "
        "tokens sent to it; alone, and the repair returns the constant in its place, [hidden]",
    },
    "sparsifier": {
        "weight": "[O, I] of a linear layer",
        "input_norm": "[I] root of the mean over tokens of x^2",
        "gram": "[I, I] mean of x x^T over the tokens that it reads",
        "sparsity": "fraction of zeros wanted, between 0 and 1",
        "pattern": "Pattern(kept, of): of every `of` consecutive inputs of a row `kept` stay; "
        "None: zeros may lie anywhere",
    },
    "allocation": {
        "error_ML": "error of each module (heads or FFN channels of a layer) at each of its "
        "levels; level 0 keeps all units",
        "cost_ML": "what it costs at that level: parameters, bytes or seconds",
        "budget": "what all levels together may cost; the allocation returns one level per module",
        "kind_M": "kind of each module (attention, ffn)",
        "loss": "function (levels, sequences) -> KL divergence, in nats per token, of the source "
        "model to the one with these levels, on the first so many calibration sequences",
        "sequences": "calibration sequences that there are",
        "generator": "torch.Generator with the run's seed",
    },
    "rotation": {
        "moment": "[D, D] mean of x^T x over the tokens of calibration text, in fp64; x: the "
        "residual stream",
        "uniform": "[D, D] random numbers between 0 and 1, others at every place, in fp64",
        "kept": "columns of the rotation that stay",
    },
    "mixture": {
        "weights": "[D] fractions of the training samples that each domain gives now; sum 1, fp64",
        "losses": "[D] held-out losses of the model as it is, in nats per token",
        "reference": "[D] the losses that they are compared with",
    },
}
"""Kind -> what may be injected into its functions, and what that is."""

COMPANION_INPUTS: dict[str, dict[str, str]] = {
    "schedule.check": {
        "tokens_per_step": "tokens of one optimizer step; 0 without training",
        "total_tokens": "tokens the run will train on",
        "prune_from": "tokens at which the pruning stage begins",
        "prune_until": "tokens at which the pruning stage ends",
    },
    "sparsifier.check": {
        "sparsity": "fraction of zeros wanted",
        "pattern": "Pattern(kept, of), or None",
    },
    "gate.check": {
        "fractions": "kind -> fraction of its units that is to go; empty where the target is a "
        "number of parameters",
        "limit": "logits lie between -limit and limit",
    },
    "selector.observe": {
        "state": "what it returned for the last cut; None for the first, or when the schedule "
        "begins a stage",
        "widths": "set -> units left",
    },
}
"""The same for the second function of a plugin; ``observe`` also gets statistics of layers, each as
a mapping from the layer's original number to its value.
"""

WITH_STATISTICS = frozenset({"criterion", "selector.observe"})
"""Whose inputs may also be registered statistics, by name."""
BACKWARD = frozenset({"grad", "hess", "mask_grad"})
"""What criteria take from a backward pass."""
OF_WEIGHTS = BACKWARD | {"uniform"}
"""What criteria take weight by weight (or token by token), never layer by layer."""
MOMENTS = frozenset({"input_mean", "input_norm", "input_variance"})
"""What criteria take from forward passes over calibration text, of single inputs of linear layers.
"""
READ = MOMENTS | {"gram"}
"""The same, of single inputs or of pairs."""
ROUTED = frozenset({"routed"})
"""What criteria take from them of the router of a mixture of experts."""
ABLATED = frozenset({"loss_increase"})
"""What criteria take of layers and blocks from passes without one of them."""
PLACE = frozenset({"kind", "layer", "positions"})
"""Where the mini-groups are that a criterion is asked for, set by set."""
