"""Downloads from the Hugging Face Hub into its own cache; of weights, only safetensors files.
Imports neither torch nor transformers; huggingface_hub only when it is needed.
"""

from collections.abc import Callable
from pathlib import Path

from effcompress.errors import SourceError
from effcompress.model.cache import is_disk_full

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


def cached_file(repo: str, revision: str | None, name: str) -> Path | None:
    """Path of a file of a hub repository if it is cached; never uses the network."""
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
        return _snapshot(repo, revision, weights, code)
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
        first = (str(error).splitlines() or [""])[0]
        what, fix = (
            f"cannot be fetched from the hub: {type(error).__name__}: {first}",
            "check the network, or fetch on a connected machine and name the folder",
        )
    return SourceError(what, where=where, fix=fix)
