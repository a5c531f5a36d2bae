"""Every command on every page is taken by the command line, or the list below says why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from effcompress import load_recipe
from effcompress.cli import app, main
from effcompress.recipe import load_plugins
from tests.contract.test_docs import PAGES, ROOT

NOT_RUN = {
    "pip install": "it installs; .ci/run does, with the command of the README",
    "torchrun": "it starts processes; tests/distributed does, and the recipe is loaded here",
    "python benchmarks/": "it measures for minutes to days; file and options are checked",
    "pytest": "it would run these tests; its files are checked here",
    "python -m pip": "it installs",
    "huggingface-cli": "another project's command",
    "hf": "another project's command, and it uploads",
    "vllm": "another project's command",
    "sbatch": "a cluster's command",
    "scontrol": "a cluster's command",
}
"""How a line begins -> why nothing of it is executed. All else is parsed by the command line, and
recipes of the repository are loaded with the `--set` of the line. The real model runs in
tests/real, and the ways of `index.md`, on tiny models, in tests/paths.
"""


def blocks(page: Path) -> list[str]:
    return re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of every command of a page: continued lines joined, comments and `$ ` taken out. Whole
    scripts are run by tests/paths/test_launch.py.
    """
    for block in (x for x in blocks(page) if not x.startswith("#!")):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for words in _parts(shlex.split(line.removeprefix("$ "), comments=True)):
                # Variables before a command, `time` in front of it.
                while words and (re.fullmatch(r"[A-Z_]+=.*", words[0]) or words[0] == "time"):
                    words = words[1:]
                if words:
                    yield words


def _parts(words: list[str]) -> Iterator[list[str]]:
    """Commands joined by `&&`; what is written into a file is no word."""
    part: list[str] = []
    for word in [*words, "&&"]:
        if word == "&&":
            yield part[: part.index(">")] if ">" in part else part
            part = []
        else:
            part.append(word)


EVERY = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]


def parsed(words: list[str]) -> dict[str, object]:
    """What the command line makes of the words after `effcompress`; nothing is executed. Raises
    UsageError for an option or a command that there is not.
    """
    command, rest = get_command(app), [*words]
    while (known := getattr(command, "commands", None)) is not None:
        assert rest and rest[0] in known, f"no command {rest[:1]}"
        command = known[rest.pop(0)]
    return command.make_context("effcompress", rest).params


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{p}: {' '.join(w)}" for p, w in EVERY])
def test_a_command_is_one_that_there_is(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = " ".join(words)
    if words[0] == "torchrun":
        words = words[words.index("effcompress") :]
    if words[0] == "effcompress":
        assert parsed(words[1:]) is not None
        overrides = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
        for target in (word for word in words if word.startswith("recipes/")):
            assert (ROOT / target).is_file(), f"{page}: {target}"
            if words[1] not in ("compare", "schema"):
                load_plugins(ROOT / target)
                found = load_recipe(
                    ROOT / target, [] if "..." in line or "runs/" in line else overrides
                )
                assert found.recipe.model
        return
    assert any(line.startswith(start) for start in NOT_RUN), f"{page}: who runs `{line}`?"
    if words[:1] == ["python"] and words[1].startswith("benchmarks/"):
        source = (ROOT / words[1]).read_text("utf-8")
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        known = source + "".join(p.read_text("utf-8") for p in (ROOT / "benchmarks").rglob("*.py"))
        assert all(f'"{option}"' in known for option in options), f"{page}: {line}"
    if words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))


def test_yaml_on_pages_can_be_read() -> None:
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            try:
                yaml.safe_load(block)
            except yaml.YAMLError as error:
                pytest.fail(f"{page.name}: {error}")


def test_the_sample_error_is_what_check_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    (said,) = re.findall(r"```text\n(error: .*?)```", page, flags=re.DOTALL)
    recipe = (ROOT / "recipes" / "quickstart.yaml").read_text("utf-8")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(
        re.sub(r"criterion: .*", "criterion: taylr", recipe)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["check", "recipes/mine.yaml"])
    seen = capsys.readouterr().err
    # Other tests register plugins of theirs in this process.
    first, second = said.splitlines()
    assert first in seen and second.split(" Known: ")[0] in seen
    named = second.split(" Known: ")[1].rstrip(".").split(", ")
    assert named == sorted(named) and set(named) <= set(re.findall(r"\w+", seen))


TAGS = {
    "br",
    "a",
    "img",
    "sub",
    "sup",
    "details",
    "summary",
    "picture",
    "source",
    "kbd",
    "div",
    "p",
}


def test_nothing_vanishes_as_a_tag() -> None:
    """``runs/<name>`` outside of code is a tag for a browser: it shows ``runs/``."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        text = re.sub(r"(`+)[^`]*?\1", "", text)
        found = {name.lower() for name in re.findall(r"</?([A-Za-z][\w.-]*)[^<>]*>", text)}
        assert found <= TAGS, f"{page.name}: {found - TAGS}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    named = set(re.findall(r": ([\w/]+\.md)$", text, flags=re.M))
    docs = ROOT / "docs"
    assert named == {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")}


def test_pictures_of_pages_are_there_and_say_what_they_show() -> None:
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text("utf-8")):
            assert len(words) > 20 and not target.startswith("http"), f"{page.name}: {target}"
            picture = (page.parent / target).read_text("utf-8")
            assert "<title" in picture and "prefers-color-scheme: dark" in picture
            links = set(re.findall(r"https?://[^\s\"'<)]+", picture))
            assert links <= {"http://www.w3.org/2000/svg"}


def test_anchors_of_links_exist() -> None:
    def anchors(page: Path) -> set[str]:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
        return {re.sub(r"[^\w\s-]", "", t).strip().lower().replace(" ", "-") for t in titles}

    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*\.md)?#([\w-]+)\)", page.read_text("utf-8")):
            there = (page.parent / target) if target else page
            assert anchor in anchors(there), f"{page.name} links to {target}#{anchor}"
