"""Puts a pruned text model back into the multimodal model that it was taken from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effcompress.checkpoint import Piece
from effcompress.errors import RunError
from effcompress.export.forms import Form
from effcompress.export.older_keys import add_older_keys
from effcompress.export.weights import piece_of
from effcompress.model.integrity import read_object, tagged
from effcompress.model.multimodal import INNER, with_text
from effcompress.model.whole import class_of_whole, copy_beside, parts_of_whole, shapes_of_whole
from effcompress.types import Config, Fields


def put_back(
    made: Form, before: Config, source: Path
) -> tuple[list[Piece], Callable[[Path], None]]:
    """Returns the weights of the multimodal model of the folder ``source`` with the text model
    ``made`` in place of its own, which had the configuration ``before``, and what writes the files
    beside them.

    Raises RunError as ``require_taken``.
    """
    config = require_taken(made, before, source)
    tensors = made.tensors
    names, others = parts_of_whole(source, tensors)
    pieces = [piece_of(tensors, (own,), lambda t, own=own: {names[own]: t[own]}) for own in names]
    for name, tensor in others.items():
        shapes, dtypes = {name: tuple(tensor.shape)}, {name: tensor.dtype}
        pieces.append(Piece(shapes, dtypes, lambda _, name=name: {name: others[name]}))

    def beside(work: Path) -> None:
        copy_beside(source, work)
        text = json.dumps(tagged(config), indent=2) + "\n"
        (work / "config.json").write_text(text, encoding="utf-8")
        if isinstance(config.get(INNER), Mapping):
            add_older_keys(work, class_of_whole(config), INNER)

    return pieces, beside


def require_taken(made: Form, before: Config, source: Path) -> Fields:
    """Returns the configuration of the whole with the text model ``made`` in it.

    Raises RunError naming the first parameter of which the class of the whole wants another shape:
    some derive widths that the text model alone has as fields, or widths of other parts from it.
    """
    outer, skeleton = read_object(source / "config.json") or {}, made.skeleton
    after: Any = skeleton.config
    config = with_text(outer, before, json.loads(after.to_json_string(use_diff=False)))
    kind, where = str(config["model_type"]), str(source)
    fix = "Write `multimodal: text` under export, or leave what it refuses out of prune.space."
    try:
        wanted, others = shapes_of_whole(config)
        were = shapes_of_whole(outer)[1]
    except Exception as error:  # classes refuse in many ways
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        what = f"'{kind}' refuses the pruned text model: {first}"
        raise RunError(what, where=where, fix=fix) from error
    for name, shape in made.params.shapes.items():
        there = wanted.get(name)
        if name.startswith("model.") and there != shape:
            what = f"'{kind}' derives {there} for {name}, the pruned text model has {shape}"
            raise RunError(what, where=where, fix=fix)
    for name, shape in were.items():
        if (there := others.get(name)) != shape:
            what = f"'{kind}' derives {there} for {name} from the text model, and it has {shape}"
            raise RunError(what, where=where, fix=fix)
    return config
