"""``effcompress push``: the files that belong to a model go to the hub, and nothing else does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from effcompress import load_recipe, run
from effcompress.cli import main
from effcompress.commands.export import export
from effcompress.commands.push import push
from effcompress.errors import SourceError
from tests.runner.toys import events, recipe

MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json", "effcompress-architecture.json", "README.md"}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    run(
        load_recipe(recipe(folder, tokens=1024, schedule="{name: once, at: 256}")),
        output=folder / "out",
    )
    return folder / "out"


@pytest.fixture
def own(done: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(done, tmp_path / "toy"))


class FakeHub:
    """Stands for ``huggingface_hub.HfApi``: keeps what is called, and files by repository."""

    repos: dict[str, dict[str, bytes]]
    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def create_repo(self, repo_id: str, **how: Any) -> None:
        if FakeHub.error:
            raise FakeHub.error
        self.calls.append(("create_repo", {"repo_id": repo_id, **how}))
        assert how["exist_ok"]
        self.repos.setdefault(repo_id, {})

    def create_branch(self, repo_id: str, **how: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **how}))

    def list_repo_files(self, repo_id: str, **_how: Any) -> list[str]:
        return [*self.repos[repo_id]]

    def create_commit(self, repo_id: str, operations: list[Any], **how: Any) -> Any:
        self.calls.append(("create_commit", {"repo_id": repo_id, **how}))
        there = self.repos[repo_id]
        for one in operations:
            if isinstance(one, huggingface_hub.CommitOperationDelete):
                del there[one.path_in_repo]
                continue
            with one.as_file() as stream:
                there[one.path_in_repo] = stream.read()
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.repos, FakeHub.calls, FakeHub.error = {}, [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return FakeHub


def test_what_belongs_to_the_model_goes_and_loads(
    done: Path, hub: type[FakeHub], tmp_path: Path
) -> None:
    answer = push(done, "someone/tiny")
    there = hub.repos["someone/tiny"]
    assert there.keys() == MODEL
    assert answer.data["files"] == {name: len(content) for name, content in there.items()}
    assert answer.data["url"].startswith("https://huggingface.co/someone/tiny")
    assert hub.calls[0] == (
        "create_repo",
        {"repo_id": "someone/tiny", "private": None, "exist_ok": True},
    )
    assert {"checkpoints/", "metrics.jsonl", "recipe.resolved.yaml", "report.html"} <= {
        *answer.data["left"]
    }
    for name, content in there.items():
        (tmp_path / name).write_bytes(content)
    module = AutoModelForCausalLM.from_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
    (end,) = events(done, "end")
    assert sum(p.numel() for p in module.parameters()) >= end["params"]
    assert 'from_pretrained("someone/tiny")' in there["README.md"].decode()
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "text-generation"


def test_nothing_of_this_machine_is_in_what_goes(done: Path, hub: type[FakeHub]) -> None:
    push(done, "someone/tiny")
    assert str(done.parent) in (done / "recipe.resolved.yaml").read_text(), "the toy has paths"
    for name, content in hub.repos["someone/tiny"].items():
        assert str(done.parent).encode() not in content, name


def test_a_list_needs_no_network(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    answer = push(done, None, list_only=True)
    assert answer.data["files"].keys() == MODEL
    (table,) = answer.sheets
    size = (done / "model.safetensors").stat().st_size
    assert ("model.safetensors", f"{size:,}") in table.rows
    assert table.rows[-1][0] == f"{len(MODEL)} files"
    assert any("checkpoints/" in note for note in answer.notes)


def test_options_reach_the_hub(own: Path, hub: type[FakeHub]) -> None:
    push(own, "someone/tiny", private=True, branch="small")
    names = [name for name, _ in hub.calls]
    assert names == ["create_repo", "create_branch", "create_commit"]
    assert hub.calls[0][1]["private"] is True
    assert hub.calls[2][1]["revision"] == "small"


def test_old_weights_of_the_repository_go_with_the_commit(own: Path, hub: type[FakeHub]) -> None:
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    kept = ["notes.txt", "adapter.safetensors"]
    hub.repos["someone/tiny"] = dict.fromkeys([*stale, *kept, "model.safetensors"], b"old")
    answer = push(own, "someone/tiny")
    there = hub.repos["someone/tiny"]
    assert not there.keys() & {*stale} and {*kept} <= there.keys()
    assert there["model.safetensors"] == (own / "model.safetensors").read_bytes()
    assert answer.data["removed"] == stale


def test_a_card_that_was_edited_goes_as_it_is(own: Path, hub: type[FakeHub]) -> None:
    (own / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    answer = push(own, "someone/tiny")
    assert hub.repos["someone/tiny"]["README.md"] == b"---\nlicense: mit\n---\nmine\n"
    assert any("was edited" in note for note in answer.notes)
    (own / "README.md").unlink()
    push(own, "someone/tiny")
    assert b"## How to load it" in hub.repos["someone/tiny"]["README.md"]


def test_files_of_the_user_stay(own: Path, hub: type[FakeHub]) -> None:
    (own / "secrets.json").write_text("{}")
    (own / "extra.safetensors").write_bytes(b"x")
    answer = push(own, "someone/tiny")
    assert hub.repos["someone/tiny"].keys() == MODEL
    assert {"secrets.json", "extra.safetensors"} <= {*answer.data["left"]}


def test_another_form_goes_with_a_card_of_its_own(own: Path, hub: type[FakeHub]) -> None:
    with pytest.raises(SourceError, match="no proven export-exact") as caught:
        push(own, "someone/tiny", form="exact")
    assert caught.value.fix == f"effcompress export {own} --as exact"
    export(own, "exact")
    push(own, "someone/tiny", form="exact")
    there = hub.repos["someone/tiny"]
    assert "modeling_pruned.py" in there and "effcompress-architecture.json" not in there
    said = there["README.md"].decode()
    assert 'from_pretrained("someone/tiny", trust_remote_code=True)' in said
    assert "custom_code" in said
    config = json.loads(there["config.json"])
    assert config["architectures"] == ["PrunedForCausalLM"]
    push(own, "someone/plain")
    assert "modeling_pruned.py" not in hub.repos["someone/plain"]


def _drop(own: Path, *kinds: str) -> None:
    path = own / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if json.loads(x)["event"] not in kinds))


def _failed(own: Path) -> None:
    _drop(own, "end")
    end = {"event": "end", "status": "failed", "reason": "the disk is full", "seconds": 1.0}
    with (own / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(end) + "\n")


BROKEN = {
    "no run": (lambda own: (own / "metrics.jsonl").unlink(), "holds no run"),
    "unfinished": (lambda own: _drop(own, "end"), "not finished"),
    "failed": (_failed, "this run failed: the disk is full"),
    "not proven": (lambda own: _drop(own, "proof"), "not proven"),
    "no weights": (lambda own: (own / "model.safetensors").unlink(), "no safetensors weights"),
    "half a file": (
        lambda own: (own / "model.safetensors").write_bytes(
            (own / "model.safetensors").read_bytes()[:-9]
        ),
        "model.safetensors has",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_proven_model_is_refused(
    own: Path, hub: type[FakeHub], case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, said = BROKEN[case]
    harm(own)
    for more in ((), ("--list",)):
        with pytest.raises(SystemExit) as exited:
            main(["push", str(own), "--to", "someone/tiny", *more])
        err = capsys.readouterr().err
        assert exited.value.code == 2 and said in err and "Traceback" not in err
    assert not hub.calls


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (["--to", "tiny"], "names its owner"),
        (["--to", "a/b/c"], "not a hub id"),
        (["--to", "some one/tiny"], "not a hub id"),
        ([], "say where to"),
    ],
)
def test_a_wrong_name_is_refused(
    done: Path, hub: type[FakeHub], to: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["push", str(done), *to])
    assert exited.value.code == 2 and said in capsys.readouterr().err
    assert not hub.calls


def _http(code: int) -> HfHubHTTPError:
    import httpx

    response = httpx.Response(code, request=httpx.Request("POST", "https://huggingface.co"))
    return HfHubHTTPError(f"{code}", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalTokenNotFoundError("no token"), "does not accept the token"),
        (_http(401), "does not accept the token"),
        (_http(403), "may not write to 'someone'"),
        (_http(500), "cannot be uploaded"),
        (ConnectionError("no route to host"), "no route to host"),
    ],
    ids=["none", "401", "403", "500", "network"],
)
def test_the_hub_refuses(
    done: Path,
    hub: type[FakeHub],
    error: Exception,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.error = error
    with pytest.raises(SystemExit) as exited:
        main(["push", str(done), "--to", "someone/tiny"])
    err = capsys.readouterr().err
    assert exited.value.code == 2 and said in err and len(err.splitlines()) <= 3


def test_without_a_token_nothing_is_asked(
    done: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SourceError, match="no token") as caught:
        push(done, "someone/tiny")
    assert "hf auth login" in (caught.value.fix or "")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        push(done, "someone/tiny")
    assert not hub.calls


def test_push_needs_no_torch(done: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from effcompress.commands.push import push\n"
        f"push(Path({str(done)!r}), None, list_only=True)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
