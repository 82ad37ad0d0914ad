"""Checkpoints on the Hugging Face Hub: ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION`` stands for a folder.

What comes from the Hub is checked before anything reads it: only the files that the card (``llmrec.json``) names are
downloaded, none that could hold code or a pickle, and each must have the hash that the card gives. The card itself is
as trustworthy as who may write to the repository: name a commit as revision to get the same one every time.

    folder = checkpoint_folder("hub:me/games@3f2a…")
    uploaded = upload({"llmrec.json": path, ...}, "me/games", message="...", private=True)
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from llmrec.checkpoint_card import CARD_FILE, Card, verify_files
from llmrec.data.assets import PREFIX as ASSET_PREFIX
from llmrec.data.assets import is_model_id, sha256_file
from llmrec.errors import EnvironmentProblem, InputError, MismatchError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hub:"
_PART = r"[A-Za-z0-9][\w.-]*"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REFERENCE = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?")
# A checkpoint is written without any of these; a card that lists one was made by someone else.
_REFUSED = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".so", ".sh", ".msgpack", ".h5", ".joblib")


@dataclass(frozen=True)
class HubReference:
    """A repository, and what of it."""

    repo: str
    """``owner/name``."""
    revision: str | None = None
    """A branch, a tag or a commit; None for the main branch."""

    @classmethod
    def parse(cls, text: str) -> HubReference:
        """Read ``hub:OWNER/NAME[@REVISION]``.

        Raises:
            InputError: it is not of that form.
        """
        found = _REFERENCE.fullmatch(text.removeprefix(PREFIX))
        if not text.startswith(PREFIX) or found is None:
            raise InputError(
                f"{text!r} names no checkpoint on the Hub.", hint="write hub:OWNER/NAME or hub:OWNER/NAME@REVISION"
            )
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Uploaded:
    """What `upload` left on the Hub."""

    url: str
    """Of the repository."""
    commit: str
    """Its new head, 40 hexadecimal digits."""
    files: int
    """In the repository, all compared with what was given."""


def require_repo(name: str) -> str:
    """`name`, if it is ``owner/name``.

    Raises:
        InputError: otherwise.
    """
    if not _REPO.fullmatch(name):
        raise InputError(
            f"{name!r} is no repository on the Hub.", hint="write OWNER/NAME, such as me/games-recommender"
        )
    return name


def is_hub(reference: str | Path) -> bool:
    """Whether `reference` begins with ``hub:``."""
    return str(reference).startswith(PREFIX)


def short_name(reference: str | Path) -> str:
    """What to call a checkpoint: the repository's name, or the folder's."""
    if is_hub(reference):
        return HubReference.parse(str(reference)).repo.split("/")[1]
    return Path(reference).absolute().name


def checkpoint_folder(reference: str | Path, *, api: HfApi | None = None) -> Path:
    """The folder of a checkpoint: `reference` itself, or of ``hub:…`` what `pull` gives."""
    if is_hub(reference):
        return pull(HubReference.parse(str(reference)), api=api)
    return Path(reference).expanduser()


def pull(reference: HubReference, *, api: HfApi | None = None) -> Path:
    """Download a checkpoint into the Hub's own cache, verify it, and return its folder there.

    What the cache has is not downloaded again; without a network, it serves.

    Args:
        reference: what to download.
        api: the client; by default one with the machine's token and ``HF_ENDPOINT``.

    Raises:
        InputError: no such repository or revision, no checkpoint, or one that names files that are never loaded.
        MismatchError: a file is not what the card says.
        EnvironmentProblem: the Hub cannot be reached, and the cache does not have it all.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    with _told(str(reference)):
        first = Path(api.snapshot_download(reference.repo, revision=reference.revision, allow_patterns=[CARD_FILE]))
    if not (first / CARD_FILE).is_file():
        raise InputError(
            f"{reference} is no llmrec checkpoint: it has no {CARD_FILE}.",
            hint="as a base model, name it in a recipe: base.model=OWNER/NAME",
        )
    card = Card.read(first)
    _require_harmless(reference, card)
    with _told(str(reference)):  # the first folder is named by the commit: a push in between mixes nothing up
        folder = Path(
            api.snapshot_download(reference.repo, revision=first.name, allow_patterns=[CARD_FILE, *card.files])
        )
    verify_files(folder, card)
    return folder


def upload(files: Mapping[str, Path], repo: str, *, message: str, private: bool, api: HfApi | None = None) -> Uploaded:
    """Make the repository hold exactly `files`, in one commit, and compare what arrived.

    Args:
        files: local file by its path in the repository.
        repo: ``owner/name``, made where it is missing.
        message: of the commit.
        private: of a new repository; an existing one must be so already.
        api: see `pull`.

    Raises:
        InputError: the repository is public and `private` is asked for, or the token may not write.
        MismatchError: what the Hub has afterwards is not what was given.
        EnvironmentProblem: the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = api or HfApi()
    with _told(repo):
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        if private and not api.repo_info(repo).private:
            raise InputError(
                f"{repo} exists and is public, so what is pushed would be public, titles of the catalogue included.",
                hint="add --public if that is meant, or give another name",
            )
        kept = (".gitattributes",)
        gone = [name for name in _remote_files(api, repo, "main") if name not in files and name not in kept]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in sorted(files.items())
        ]
        operations += [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in gone]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = api.create_commit(repo, operations, commit_message=message).oid
        arrived = _remote_files(api, repo, commit)
    wrong = [name for name, path in files.items() if arrived.get(name) not in (sha256_file(path), _git_blob(path))]
    if wrong:
        raise MismatchError(
            f"{repo} does not hold what was pushed: {len(wrong)} of {len(files)} files differ, such as {wrong[0]}.",
            hint="push again",
        )
    return Uploaded(url, commit, len(files))


def _require_harmless(reference: HubReference, card: Card) -> None:
    """Only plain relative names of files that a checkpoint is made of; as patterns they must match themselves alone."""
    for name in card.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or re.search(r"[*?\[\]\\]", name) or path.suffix in _REFUSED:
            raise InputError(
                f"The card of {reference} lists {name!r}, which no checkpoint of llmrec holds.",
                hint="do not use it; ask who pushed it",
            )
    base = card.base.reference if card.base and card.kind == "adapter" else None
    if base and not base.startswith(ASSET_PREFIX) and not is_model_id(base):
        raise InputError(
            f"The adapter {reference} needs the base {base!r}, which is a folder on another machine.",
            hint="ask for it to be pushed with --base or --merged (llmrec push)",
        )


def _remote_files(api: HfApi, repo: str, revision: str) -> dict[str, str]:
    """SHA-256 of large files and git's blob id of small ones, by path; an empty repository has none."""
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        found = list(api.list_repo_tree(repo, recursive=True, revision=revision))
    except RevisionNotFoundError:
        return {}
    entries = [entry for entry in found if isinstance(entry, RepoFile)]
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries}


def _git_blob(path: Path) -> str:
    content = path.read_bytes() if path.stat().st_size < 64 * 2**20 else b""  # larger ones are never plain git blobs
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the client in our words."""
    from huggingface_hub import errors
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    no_answer: type[Exception] = vars(errors)["HTTPError"]  # of the HTTP library that this version stands on

    try:
        yield
    except RevisionNotFoundError as error:
        raise InputError(f"{what}: the repository has no such revision.", hint="see its commits") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{what}: the Hub has no such repository, or it is private and you are not logged in.",
            hint="check the name, or run `hf auth login`",
        ) from error
    except HFValidationError as error:
        raise InputError(f"{what}: {error}", hint="write OWNER/NAME") from error
    except (no_answer, OSError, RuntimeError) as error:  # the last: an upload that broke off
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            raise InputError(
                f"{what}: the Hub refuses this (HTTP {status}): {_first_line(error)}",
                hint="run `hf auth login` with a token that may write there",
            ) from error
        raise EnvironmentProblem(
            f"{what}: the Hub cannot be used: {_first_line(error)}",
            hint="check the network and HF_ENDPOINT, or give a local folder",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
