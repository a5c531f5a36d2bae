"""Everything that a run changes, in one place: what is not in here is not in a checkpoint."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from effcompress import groups
from effcompress.checkpoint import Saved
from effcompress.data import Corpus, Stream
from effcompress.errors import RecipeError
from effcompress.model.families import family_of
from effcompress.model.load import LoadedModel
from effcompress.removal.ledger import Ledger
from effcompress.removal.modules import adapt, agree, agree_config
from effcompress.removal.norms import Norm, norms
from effcompress.saliency.average import ScoreAverage
from effcompress.spec import Recipe
from effcompress.train import optimizer
from effcompress.types import AxisMap, GroupSet

PROBE_TOKENS = 48
"""Length of the sequences on which a commit proves itself."""


def device_of(recipe: Recipe) -> torch.device:
    """Where a recipe computes."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda, but torch sees no GPU here", fix="Write `device: auto`.")
    return torch.device(recipe.device)


@final
class RunState:
    """Model, optimizer, position in the data, what is gone, what was measured."""

    def __init__(self, recipe: Recipe, model: LoadedModel, corpus: Corpus) -> None:
        self.device = device_of(recipe)
        self.module: nn.Module = model.module.to(self.device)
        self.tokenizer = model.tokenizer
        self.config = model.config
        self.family = family_of(model.config)
        self.recipe = recipe
        self.stream: Stream = corpus.stream(recipe.seed)
        self.parent: AxisMap = groups.axes_of(self.module, self.family, self.config)
        self.parent_params = self.parent.count()
        space = recipe.prune.space if recipe.prune else ()
        self.parent_sets: list[GroupSet] = groups.find(self.parent, space)
        self.sets = self.parent_sets
        self.ledger = Ledger({s.name: s.size for s in self.parent_sets})
        decay = recipe.prune.measure.decay if recipe.prune else 0.0
        self.average = ScoreAverage(self.ledger.sizes, decay)
        self.optimizer: Optimizer | None = (
            optimizer(self.module, recipe.train) if recipe.train else None
        )
        self.step = 0
        self.tokens = 0
        self.groups_cut = 0
        self.since_commit = 0
        self.target_reached = False
        self.seconds = 0.0
        self.probe_BT = corpus.calibration(1, recipe.seed)[:, :PROBE_TOKENS]

    @property
    def params(self) -> int:
        """Parameters of the model as a function: masked units do not count."""
        return self.parent.count(self.ledger.widths())

    @property
    def widths(self) -> dict[str, int]:
        """Units alive on every axis that can be cut, whether the recipe does or not."""
        wide = {**self.parent.widths, **self.ledger.widths()}
        fixed = self.family.fixed
        return {name: width for name, width in wide.items() if name.split(".")[0] not in fixed}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by name; a tied one once."""
        return dict(self.module.named_parameters())

    def norms(self) -> list[Norm]:
        """Norms over the hidden axis."""
        return list(norms(self.module, self.family, self.config["num_hidden_layers"]))

    def refresh(self) -> None:
        """After shapes changed: modules, configuration and group sets follow the tensors."""
        agree(self.module)
        uniform = self.uniform_widths()
        if uniform is not None:
            agree_config(self.module, self.family.resize(self.config, uniform))
        axes = groups.axes_of(self.module, self.family, self.config)
        adapt(self.module, self.family, self.config, axes.widths)
        if self.recipe.prune:
            self.sets = groups.find(axes, self.recipe.prune.space)

    def uniform_widths(self) -> dict[str, int] | None:
        """Width per axis kind, or None when layers differ."""
        found: dict[str, set[int]] = {}
        for name, width in self.widths.items():
            found.setdefault(name.split(".")[0], set()).add(width)
        if any(len(widths) > 1 for widths in found.values()):
            return None
        return {kind: widths.pop() for kind, widths in found.items()}

    def snapshot(self, log_position: dict[str, int]) -> Saved:
        """All of it, as JSON values and flat tensors. Tensors are not copied."""
        values: dict[str, Any] = {
            "step": self.step,
            "tokens": self.tokens,
            "groups_cut": self.groups_cut,
            "since_commit": self.since_commit,
            "target_reached": self.target_reached,
            "seconds": self.seconds,
            "stream": self.stream.state_dict(),
            "saliency_weight": self.average.weight,
            "epsilons": [norm.epsilon for norm in self.norms()],
            "log": log_position,
        }
        tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for name, p in self.parameters().items():
            tensors[f"model/{name}"] = p.detach()
            if self.optimizer is not None:
                for key, value in self.optimizer.state.get(p, {}).items():
                    tensors[f"optimizer/{key}/{name}"] = value
        tensors |= {f"ledger/{k}": t for k, t in self.ledger.state_dict().items()}
        tensors |= {f"saliency/{k}": t for k, t in self.average.values.items()}
        return Saved(values, tensors)

    def restore(self, saved: Saved) -> None:
        """The state that ``snapshot`` saw, bit for bit; shapes come from the checkpoint."""
        values, tensors = saved.values, saved.tensors
        for key in ("step", "tokens", "groups_cut", "since_commit", "target_reached", "seconds"):
            setattr(self, key, values[key])
        self.stream.load_state_dict(values["stream"])
        for name, p in self.parameters().items():
            stored = nn.Parameter(tensors[f"model/{name}"].to(p.device, p.dtype))
            torch.utils.swap_tensors(p, stored)
        if self.optimizer is not None:
            params = self.parameters()
            for key, value in _under("optimizer/", tensors).items():
                field, _, name = key.partition("/")
                p = params[name]
                # Only the fused AdamW keeps its step count beside the parameter.
                beside = value.shape == p.shape or bool(
                    self.recipe.train and self.recipe.train.fused
                )
                self.optimizer.state[p][field] = value.to(p.device) if beside else value
        for norm, epsilon in zip(self.norms(), values["epsilons"], strict=True):
            norm.epsilon = epsilon
        self.ledger.load_state_dict(_under("ledger/", tensors))
        self.average.load_state_dict(
            {"values": _under("saliency/", tensors), "weight": values["saliency_weight"]}
        )
        self.refresh()
        torch.set_rng_state(tensors["rng/cpu"])
        if self.device.type == "cuda" and "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
