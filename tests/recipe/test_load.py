from __future__ import annotations

import time
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
        loaded(tmp_path, text)
    text = text.replace("{wheel", "{hub: null, wheel")
    assert loaded(tmp_path, text).recipe.model.wheel == "toy==1.0"


def test_an_included_domain_is_taken_out_by_null(tmp_path):
    write(tmp_path, RECIPE, "one.yaml")
    out = "data: {domains: {web: null}}\n"
    assert [*loaded(tmp_path, f"include: one.yaml\n{out}").recipe.data.domains] == ["notes"]
    write(tmp_path, f"include: one.yaml\n{out}", "two.yaml")
    text = "include: two.yaml\ndata: {domains: {more: {txt: b.txt}}}\n"
    assert [*loaded(tmp_path, text).recipe.data.domains] == ["notes", "more"]
    again = "include: two.yaml\ndata: {domains: {web: {txt: b.txt}}}\n"
    assert loaded(tmp_path, again).recipe.data.domains["web"].txt == (tmp_path / "b.txt",)
    by_set = loaded(tmp_path, RECIPE, "data.domains.web=null").recipe
    assert [*by_set.data.domains] == ["notes"]
    for text, sets in (
        (RECIPE.replace("{jsonl: web.jsonl, weight: 2}", ""), ()),  # nothing to take out
        (RECIPE, ("data.domains.wbe=null",)),
        (f"include: two.yaml\n{out}", ()),
        (f"include: two.yaml\n{out.replace('web', 'notes')}", ()),  # none is left
    ):
        with pytest.raises(RecipeError, match=r"data\.domains"):
            loaded(tmp_path, text, *sets)


def test_patterns_of_files_and_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "text" / "deep").mkdir(parents=True)
    for name in ("text/2.txt", "text/1.txt", "text/deep/3.txt", "text/[x]*.txt", "text/x.jsonl"):
        (tmp_path / name).write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))

    def names(written: str) -> list[str]:
        result = loaded(tmp_path, RECIPE.replace("[a.txt, b.txt]", written))
        paths = result.recipe.data.domains["notes"].txt
        origins = [result.origins[f"data.domains.notes.txt.{i}"] for i in range(len(paths))]
        assert origins == [f"{result.path}:7"] * len(paths)
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert names("text/?.txt") == ["text/1.txt", "text/2.txt"]
    assert names("[a.txt, '~/text/[12].txt', b.txt]") == [
        *("a.txt", "text/1.txt", "text/2.txt", "b.txt")
    ]
    assert "text/deep/3.txt" in names("text/**/*.txt")
    assert names("'text/[x]*.txt'") == ["text/[x]*.txt"], "a file of that very name comes first"
    with pytest.raises(RecipeError, match=r"notes\.txt\.0: no file matches 'text/\*\.md'"):
        names("text/*.md")
    with pytest.raises(RecipeError) as error:
        names("text")
    assert "'text/*'" in str(error.value)


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


@pytest.mark.parametrize("number", ["12", "-3", "+7", "0", "0x1F", "0b11", "1_000"])
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


HOSTILE = {
    "aliases nine deep": (
        "a0: &a0 [x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
        "more than 10,000 values",
    ),
    "merges nine deep": (
        "a0: &a0 {x: 1}\n"
        + "".join(
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}\n"
            for i in range(1, 10)
        ),
        "more than 10,000 values",
    ),
    "chained merges": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: 1}}\n" for i in range(1, 400)),
        "64 levels",
    ),
    "brackets": ("model: " + "[" * 1500 + "]" * 1500, "64 levels"),
    "braces": ("model: " + "{a: " * 1500 + "}" * 1500, "64 levels"),
    "indented": ("\n".join(" " * i + "a:" for i in range(700)), "64 levels"),
    "too many values": ("plugins: [" + "a," * 20_000 + "]", "more than 10,000 values"),
    "too large": ("# " + "x" * 2**20, "larger than 1024 KiB"),
    "hexadecimal": ("seed: 0x" + "f" * 5000, "seed is the number 0xfff"),
    "decimal": ("seed: " + "9" * 5000, "seed is the number 999"),
    "tokens in quotes": (RECIPE.replace("1.5k", f"'{'9' * 5000}M'"), "train.tokens is '999"),
    "a bool that is none": ("seed: !!bool abc", "the type tag:yaml.org,2002:bool, but is abc"),
    "an empty int": ("seed: !!int ''", "the type tag:yaml.org,2002:int"),
    "a date that is none": ("seed: !!timestamp abc", "the type tag:yaml.org,2002:timestamp"),
    "a tagged mapping": ("model: !!python/object:os.system {a: 1}", "the type tag:yaml.org,2002"),
    "a tagged key": ("!!bool abc: 1", "the type tag:yaml.org,2002:bool"),
    "NUL": ('include: "a\\0b"', "include holds a character"),
    "NUL in a key": ('"a\\0b": 1', "holds a character"),
    "half a surrogate pair": ('name: "\\ud800"', "name holds a character"),
    "long include": (f"include: {'x' * 5000}", "include: no file 'xxx"),
    "long path": (RECIPE.replace("web.jsonl", "x/" * 5000), "no file 'x/x/"),
    "long folder": (RECIPE.replace("hub: org/toy", "folder: " + "x" * 5000), "no folder 'xxx"),
    "long plugin": (RECIPE + f"plugins: {'x' * 5000}", "plugins.0: no file 'xxx"),
    "nobody's home": (RECIPE.replace("web.jsonl", "~nobody-here/a"), "no home folder"),
    "long text": (RECIPE.replace("name: toy", f"name: '{'x ' * 5000}'"), "name is 'x x"),
    "lines in text": (RECIPE.replace("3e-4", '"a\\nb\\nc\\nd"'), r"the text 'a\\nb\\nc\\nd'"),
    "a large batch": (
        RECIPE.replace("tokens: 1.5k", "tokens: 1k\n  batch_size: 99999999999"),
        "at most",
    ),
    "many tokens": (RECIPE.replace("1.5k", "99999T"), "at most"),
    "octal": (
        "seed: 012",
        "seed is 012, which YAML versions read as different numbers\n  Write 12,",
    ),
    "octal of YAML 1.2": ("seed: 0o10", "Write 8,"),
    "octal in a negative number": ("seed: -0017", "Write -17,"),
    "octal in quotes": (RECIPE.replace("1.5k", "'012'"), "Did you mean 12\\?"),
    "no octal": (RECIPE + "seed: 089\n", "the text '089'.*\n.*Did you mean 89\\?"),
    "octal as text": (RECIPE.replace("toy}", "toy, revision: 0x10}"), "in quotes: '0x10'"),
    "true as text": (RECIPE.replace("toy}", "toy, revision: Yes}"), "in quotes: 'Yes'"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_words_and_at_once(tmp_path, text):
    begun = time.process_time()
    with pytest.raises(RecipeError, match=text[1].replace("(", "\\(")) as refused:
        loaded(tmp_path, text[0])
    assert time.process_time() - begun < 3
    assert len(str(refused.value).splitlines()) <= 3 and len(str(refused.value)) < 2500


def test_sexagesimal_numbers_are_text_and_no_guess_is_made_from_a_part(tmp_path):
    assert parse("x: [1:00, 1:30.5]", None).values == {"x": ["1:00", "1:30.5"]}
    for written in ("1:00", "0b1x", "12abc", "1 2:3"):
        with pytest.raises(RecipeError, match=r"train\.tokens is") as refused:
            loaded(tmp_path, RECIPE.replace("1.5k", f"'{written}'"))
        assert "Did you mean" not in str(refused.value)


def test_includes_that_multiply_are_refused(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.yaml").write_text(f"include: [{', '.join([f'{i + 1}.yaml'] * 9)}]\n")
    (tmp_path / "8.yaml").write_text("seed: 1\n")
    with pytest.raises(RecipeError, match="more than 100 files"):
        loaded(tmp_path, "include: 0.yaml\n")


def test_set_is_bounded_too(tmp_path):
    for override in ("a." * 3000 + "a=1", "seed=" + "[" * 3000, "seed=012", 'name="\\0"'):
        with pytest.raises(RecipeError, match="--set"):
            loaded(tmp_path, RECIPE, override)


def test_a_mapping_stands_for_a_file(tmp_path, monkeypatch):
    path = write(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load(RECIPE.replace("3e-4", "0.0003"))  # which YAML 1.1 takes for text
    values["data"]["domains"]["notes"]["txt"] = (Path("a.txt"), tmp_path / "b.txt")
    given = load(values, (), registry())
    assert given.recipe == load(path, (), registry()).recipe
    assert given.origins["prune.target.keep"] == "recipe['prune']['target']['keep']"
    assert given.origins["prune.selector.name"] == "default"
    assert yaml.safe_load(given.source)["train"] == {
        "tokens": "1.5k",
        "learning_rate": {"peak": 0.0003},
    }
    changed = load(values, ["prune.target.keep=70%"], registry())
    assert changed.recipe.prune is not None and changed.recipe.prune.target.keep == 0.7
    assert load(str(path), (), registry()).recipe == given.recipe


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ({"prnue": {}}, "unknown key prnue", "recipe['prnue']"),
        ({"seed": -1}, "seed is -1", "recipe['seed']"),
        ({"seed": {1, 2}}, "its type is set", "recipe['seed']"),
        ({"data": {3: 4}}, "a key is 3, not text", "recipe['data']"),
        ({"model": None}, "model has no value", "recipe['model']"),
        ({"plugins": ["gone.py"]}, "no file 'gone.py'", "recipe['plugins'][0]"),
        ({"include": "gone.yaml"}, "no file 'gone.yaml'", "recipe['include']"),
        ({"prune": {"target": {"keep": 2}}}, "keep", "recipe['prune']['target']['keep']"),
    ],
)
def test_errors_of_a_mapping_name_the_key(change, what, where, tmp_path, monkeypatch):
    write(tmp_path, RECIPE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        load({**yaml.safe_load(RECIPE.replace("3e-4", "0.0003")), **change}, (), registry())
    assert what in error.value.what and error.value.where == where


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("loop.jsonl", "a link that leads nowhere"),
        ("/dev/zero", "no file: a device"),
        ("https://example.com/a.jsonl", "This is an address: download it"),
    ],
)
def test_what_is_there_and_no_file(tmp_path, name, hint):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(RecipeError, match="no file") as error:
        loaded(tmp_path, RECIPE.replace("[a.txt, b.txt]", name))
    assert hint in str(error.value.fix) and "did you mean" not in str(error.value)
