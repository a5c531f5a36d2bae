"""What making zeros will do, by arithmetic on axes: no torch."""

from __future__ import annotations

from collections.abc import Iterator

from effcompress.errors import RecipeError
from effcompress.recipe import LoadedRecipe
from effcompress.spec import SparsifySpec
from effcompress.types import AxisMap, Widths


def skipped_layers(spec: SparsifySpec, parent: AxisMap) -> set[int]:
    """Numbers (the parent's) of the layers that stay dense."""
    last = max(parent.depth.layers, default=-1) + 1
    return {i + last if i < 0 else i for i in spec.skip_layers}


def expected(loaded: LoadedRecipe, axes: AxisMap, widths: Widths) -> tuple[int, int] | None:
    """Weights that can become zero, and those that will, in a model of these widths; None where the
    recipe makes no zeros.

    Raises RecipeError when all layers are skipped, one that is skipped does not exist, or inputs do
    not divide into the groups of the pattern.
    """
    spec = loaded.recipe.sparsify
    if spec is None:
        return None
    unknown = skipped_layers(spec, axes) - set(axes.depth.layers)
    params = list(_linears(axes, spec))
    if unknown or not params:
        there = f"layers are 0 to {max(axes.depth.layers, default=-1)}"
        raise RecipeError(
            f"sparsify.skip_layers: {f'no layer {min(unknown)}' if unknown else 'nothing is left'}",
            where=_where(loaded, "sparsify.skip_layers.0"),
            fix=f"The {there}; negative numbers count from the end.",
        )
    if loaded.recipe.prune is None:  # what pruning leaves is held against the pattern later
        _require_groups(loaded, spec, axes, params)
    weights = sum(axes.numel(param, {**axes.widths, **widths}) for param in params)
    return weights, round(weights * spec.fraction)


def _require_groups(
    loaded: LoadedRecipe, spec: SparsifySpec, axes: AxisMap, params: list[str]
) -> None:
    pattern, dim = spec.n_of_m, axes.family.inputs
    for param in params if pattern else ():
        if pattern and axes.shapes[param][dim] % pattern.of:
            raise RecipeError(
                f"sparsify.pattern: the {axes.shapes[param][dim]} inputs of {param} do not divide "
                f"into groups of {pattern.of}",
                where=_where(loaded, "sparsify.pattern"),
                fix=f"Write `sparsity: {spec.fraction:.0%}` instead, or leave layers out by "
                "`skip_layers`.",
            )


def _where(loaded: LoadedRecipe, key: str) -> str:
    origin = loaded.origins.get(key, str(loaded.path))
    return f"--set {key}" if origin == "--set" else origin


def _linears(axes: AxisMap, spec: SparsifySpec) -> Iterator[str]:
    """Matrices of the blocks that do not stay dense; experts and their routers are none."""
    before, after = axes.family.layer.split("{i}")
    skipped = skipped_layers(spec, axes)
    for j, i in enumerate(axes.depth.layers):
        prefix = f"{before}{j}{after}."
        router = axes.family.router.replace("{i}", str(j)) + ".weight"
        for param, shape in axes.shapes.items():
            inside = param.startswith(prefix) and i not in skipped
            if inside and len(shape) == 2 and param != router:
                yield param
