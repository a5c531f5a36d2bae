"""Downloads from the Hugging Face Hub into its own cache; of weights, only safetensors files.
Uploads a model to it. Imports neither torch nor transformers; huggingface_hub only when it is
needed.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from effcompress.errors import SourceError, is_disk_full

Progress = Callable[[str], None]
"""Takes one line of text for the user."""

_TEXT = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Subfolders hold other formats and other sizes; `consolidated` is a second copy of the weights.
_IGNORE = ["*/*", "consolidated*"]


def _snapshot(
    repo: str, revision: str | None, weights: bool, code: bool, *, offline: bool = False
) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*_TEXT, *(["*.safetensors"] if weights else []), *(["*.py"] if code else [])]
    path = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=wanted,
        ignore_patterns=_IGNORE,
        local_files_only=offline,
    )
    return Path(path)


def _fetch_card(repo: str, revision: str | None) -> None:
    """Fetches the model card, which states the license. A repository need not have one."""
    from huggingface_hub import hf_hub_download

    with suppress(Exception):
        hf_hub_download(repo, "README.md", revision=revision)


_WORDS = r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*"
_PLAIN_ID = re.compile(f"({_WORDS}/)?{_WORDS}")
"""Hub ids that are valid without asking huggingface_hub."""


def _unknown_to_cache(repo: str) -> bool:
    """Returns whether the cache certainly has nothing of a repository: not even its folder. The
    functions that look further import an HTTP client, which takes longer than a whole `plan`.
    """
    from huggingface_hub import constants

    if not _PLAIN_ID.fullmatch(repo) or len(repo) > 96 or repo.endswith(".git"):
        return False
    name = constants.REPO_ID_SEPARATOR.join(["models", *repo.split("/")])
    return not Path(constants.HF_HUB_CACHE, name).exists()


def cached_file(repo: str, revision: str | None, name: str) -> Path | None:
    """Path of a file of a hub repository if it is cached; never uses the network."""
    if _unknown_to_cache(repo):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, name, revision=revision)
    except HFValidationError as error:
        raise _not_an_id(repo, error) from error
    return Path(found) if isinstance(found, str) else None


def cached_snapshot(
    repo: str, revision: str | None, *, weights: bool = True, code: bool = False
) -> Path | None:
    """Folder of a hub repository if it is cached; never uses the network."""
    if _unknown_to_cache(repo):
        return None
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(repo, revision, weights, code, offline=True)
    except HFValidationError as error:
        raise _not_an_id(repo, error) from error
    except LocalEntryNotFoundError:
        return None


def download(
    repo: str,
    revision: str | None,
    *,
    weights: bool = True,
    code: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Downloads a repository, except for files that are cached, and returns its folder.

    Raises:
        SourceError: no such repository or revision, no access, no network, disk full.
    """
    from huggingface_hub import utils

    if progress:
        progress(f"fetching {repo} from the Hugging Face Hub")
    hidden = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        folder = _snapshot(repo, revision, weights, code)
        if weights:
            _fetch_card(repo, revision)
        return folder
    except Exception as error:
        raise _explained(repo, revision, error) from error
    finally:
        if not hidden:
            utils.enable_progress_bars()


def _not_an_id(repo: str, error: Exception) -> SourceError:
    return SourceError(f"not a hub id: {error}", where=f"model.hub: {repo}", fix="owner/name")


def _explained(repo: str, revision: str | None, error: Exception) -> SourceError:
    """Turns an error of the hub's client into one sentence and one remedy."""
    from huggingface_hub import constants, errors

    where = f"{repo}@{revision}" if revision else repo
    if is_disk_full(error):
        what, fix = (
            f"the disk is full: {constants.HF_HUB_CACHE}; the parts fetched so far are kept",
            "free some space and try again, or set HF_HOME to a folder on a bigger disk",
        )
    elif isinstance(error, errors.GatedRepoError):
        what, fix = "access must be asked for", "accept its terms on the hub, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what, fix = "no such model on the hub, or a private one", "check the id, or `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, fix = "no such revision", "a commit, tag or branch of this repository"
    elif isinstance(error, errors.HFValidationError):
        return _not_an_id(repo, error)
    else:
        what, fix = (
            f"cannot be fetched from the hub: {type(error).__name__}: {_first_line(error)}",
            "check the network, or fetch on a connected machine and name the folder",
        )
    return SourceError(what, where=where, fix=fix)


@dataclass(frozen=True)
class Uploaded:
    """Where a model lies on the hub, and the old files of weights that went with the commit."""

    url: str
    removed: tuple[str, ...]


def require_repo(repo: str) -> None:
    """Raises SourceError unless it is ``owner/name``, as the hub allows them."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        said = str(error).partition("\n")[0]
        raise SourceError(f"not a hub id: {said}", where=f"--to {repo}", fix=_NAMED) from error
    if "/" not in repo:
        raise SourceError("a hub id names its owner, too", where=f"--to {repo}", fix=_NAMED)


def require_login() -> None:
    """Raises SourceError where no token is stored, or the environment says to stay offline."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise SourceError(
            "HF_HUB_OFFLINE is set, and the hub is elsewhere",
            where="push",
            fix="Unset it, or look at the files with --list.",
        )
    if not get_token():
        raise SourceError(
            "there is no token of the hub on this machine",
            where="push",
            fix=f"{_LOGIN}; or set HF_TOKEN. --list needs none.",
        )


def upload(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    stale: Callable[[str], bool],
    private: bool | None,
    branch: str | None,
    message: str,
) -> Uploaded:
    """Creates the model repository if there is none and commits ``files`` (path there -> file or
    content) to it at once. Files there that ``stale`` names and this commit does not bring are
    deleted by it. ``private`` None: as the owner's settings on the hub say, where it is created.

    Raises SourceError: no network, a token that is not valid or may not write there.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch:
            api.create_branch(repo, branch=branch, exist_ok=True)
        there = api.list_repo_files(repo, revision=branch)
        gone = tuple(sorted(name for name in there if stale(name) and name not in files))
        add = [CommitOperationAdd(name, content) for name, content in files.items()]
        delete = [CommitOperationDelete(name) for name in gone]
        done = api.create_commit(repo, [*add, *delete], commit_message=message, revision=branch)
    except Exception as error:  # of the client, of its transport, of the system
        raise _not_uploaded(repo, error) from error
    return Uploaded(str(done.commit_url), gone)


_NAMED = "USER/NAME or ORGANISATION/NAME"
_LOGIN = "`hf auth login` with a token that may write"


def _not_uploaded(repo: str, error: Exception) -> SourceError:
    """Turns an error of an upload into one sentence and one remedy."""
    from huggingface_hub import errors

    what, fix = f"{type(error).__name__}: {_first_line(error)}", "Check the network and try again."
    code = None
    with suppress(AttributeError):
        code = error.response.status_code  # type: ignore[attr-defined]
    if isinstance(error, errors.LocalTokenNotFoundError) or code == 401:
        what, fix = "the hub does not accept the token", f"{_LOGIN}."
    elif code == 403:
        owner = repo.partition("/")[0]
        what, fix = f"the token may not write to '{owner}'", f"{_LOGIN} there, or another owner."
    elif isinstance(error, errors.RepositoryNotFoundError):
        what, fix = "no such repository, or one that the token may not see", f"{_LOGIN}."
    return SourceError(f"cannot be uploaded: {what}", where=f"--to {repo}", fix=fix)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
