"""Models from the Hugging Face hub, through huggingface-hub and its cache.

The library reads HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE, and shows progress bars on standard
error. A connection that is cut is taken up where it stopped; after a stopped process, the files that were complete are
not fetched again. It is imported when first needed: that takes a good part of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import ModelNotFound, UnsupportedModel

#: Configuration, tokenizer, chat template; and the weights. Never a pickle.
DESCRIPTION = ["*.json", "*.jinja", "*.txt", "*.model"]
WEIGHTS = ["*.safetensors"]
#: Other formats' copies of the same weights lie in folders (onnx/, original/) and under Mistral's own name.
UNWANTED = ["*/*", "consolidated*"]


def download_model(repo: str, revision: str | None, directory: Path | None = None, *, weights: bool) -> Path:
    """The directory that holds the repository's snapshot, fetched as far as it is not there.

    `revision` is a branch, tag or commit; None is the main branch. `directory` is where to; None is the library's
    cache. Without `weights` only the description is fetched.
    Raises `ModelNotFound`, or `UnsupportedModel` for a repository without safetensors.
    """
    from huggingface_hub import snapshot_download

    with _translated(repo, revision):
        patterns = DESCRIPTION + WEIGHTS if weights else DESCRIPTION
        path = Path(
            snapshot_download(
                repo, revision=revision, local_dir=directory, allow_patterns=patterns, ignore_patterns=UNWANTED
            )
        )
    if not (path / "config.json").is_file() or (weights and not any(path.glob("*.safetensors"))):
        raise _not_a_model(repo, _names(repo, revision))
    return path


def download_file(repo: str, name: str, revision: str | None, directory: Path | None = None) -> Path:
    """One file of a repository, fetched unless it is there, into `directory` or the cache. Raises `ModelNotFound`."""
    from huggingface_hub import hf_hub_download

    with _translated(repo, revision):
        return Path(hf_hub_download(repo, name, revision=revision, local_dir=directory))


def _names(repo: str, revision: str | None) -> list[str]:
    """The repository's file names, for an error message."""
    from huggingface_hub import HfApi

    with _translated(repo, revision):
        return sorted(HfApi().list_repo_files(repo, revision=revision))


def _not_a_model(repo: str, names: list[str]) -> ModelNotFound | UnsupportedModel:
    for name in names:
        if name.endswith(".gguf"):
            return ModelNotFound(f"{repo} holds GGUF files; name one of them: {repo}/{name}")
    if "config.json" not in names:
        return ModelNotFound(f"{repo} has no config.json; it is not a model in Hugging Face's format")
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if not pickles:
        return ModelNotFound(f"{repo} holds no weights; they would be .safetensors files beside its config.json")
    return UnsupportedModel(
        f"{repo} has its weights only as pickle ({pickles[0]}), which can run any code when it is read, so core never "
        "does; look for a revision or a copy with .safetensors files, or convert it with transformers' save_pretrained"
    )


@contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    """The seam where the library's errors become ours."""
    from huggingface_hub import constants, errors

    what = f"{repo} at revision {revision!r}" if revision else repo
    page, cache = f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{repo} is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account "
            f"(made at {constants.ENDPOINT}/settings/tokens)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{repo} has no revision {revision!r}; its revisions are listed at {page}/refs") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{constants.ENDPOINT} has no model {repo!r}, or it is private: check the name, or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        raise ModelNotFound(
            f"{what} is not, or not wholly, in the cache {cache}, and {offline}: go online once to fetch it, point HF_HUB_CACHE "
            "to the cache that has it, or give a local directory"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(
            f"{what} does not have that file; its files are listed at {page}/tree/{revision or 'main'}"
        ) from error
    # HTTPError is the root of whichever HTTP client the library uses; it has moved from requests to httpx and on.
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:  # type: ignore[attr-defined]
        raise ModelNotFound(f"{what} could not be fetched into {cache}: {error}") from error
