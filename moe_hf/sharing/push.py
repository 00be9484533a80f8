"""Pushes a model's folder to the Hub: everything in one commit, or nothing."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.cards.card import CARD_FILE, is_unedited, renamed, split_card, with_metadata, with_section
from moe_hf.models.cards.described import card_of_folder, loading_of_folder
from moe_hf.models.cards.loading import how_to_load
from moe_hf.models.dense.checkpoint_files import listed
from moe_hf.models.info import get_moe_model_info
from moe_hf.sharing.hub_errors import in_words
from moe_hf.sharing.loadable import require_loadable
from moe_hf.sharing.shared_files import (
    WEIGHT_FILE,
    require_model_names,
    require_no_secrets,
    require_one_save,
    require_sound_files,
    shared_files,
)

# Where the code of a model begins, by the custom of transformers.
_CODE = re.compile(r"modeling_\w+\.py")


class PushReport(NamedTuple):
    """What a push has done.

    Attributes:
        repo_id: owner/name.
        url: of the commit.
        commit: its SHA.
        is_new: False where the Hub had all of it already, so that no commit was made.
        private: whether the repository is.
        names: of the files that the folder shares.
        left_out: what of the folder is not shared, with the reason.
        removed: weights of an earlier push that are gone with this commit.
        card: where its card comes from.
        notice: what could not be checked; None where all was.
    """

    repo_id: str
    url: str
    commit: str
    is_new: bool
    private: bool
    names: list[str]
    left_out: dict[str, str]
    removed: list[str]
    card: str
    notice: str | None


class Repository(NamedTuple):
    """A repository on the Hub at one moment.

    Attributes:
        repo_id: owner/name.
        revision: the branch.
        head: the SHA of its newest commit.
        names: its files there.
        private: whether it is.
    """

    repo_id: str
    revision: str
    head: str
    names: frozenset[str]
    private: bool


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    added: Mapping[str, str] | None = None,
) -> PushReport:
    """Push the model in a folder as one commit, with a card.

    Everything is checked before the Hub hears of it. Large files that the Hub has are not sent again, so a push that
    was interrupted goes on with the file that it was at. The folder is only read.

    Args:
        folder: of the model: config, weights as safetensors, and what else lies there (`shared_files`); or of an
            adapter, as peft saves it.
        repo_id: owner/name, or a name alone for the user's own; made where there is none.
        private: make it private. One that is there and public is refused.
        revision: a branch, made from `main` where there is none.
        message: of the commit.
        token: None takes that of HF_TOKEN or of `hf auth login`.
        added: texts to push beside the folder's files, or in place of some, by their names: the code that makes the
            model self-contained, say.

    Raises:
        CheckpointError: the folder is no whole model, or holds a secret; or the Hub refuses. Nothing is pushed then.
        ConfigError: no token, or a name that the Hub does not take.
        OSError: the Hub cannot be reached, or fails.
    """
    folder = Path(folder).expanduser()
    with in_words(repo_id):
        validate_repo_id(repo_id)
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ConfigError(f"revision={revision!r} is a commit, to which nothing can be added; name a branch")
    shared = shared_files(folder)
    require_model_names(folder, [*shared.files, *shared.left_out])
    require_one_save(folder, shared.files)
    require_sound_files(folder, shared.files)
    token = require_token(token)
    require_no_secrets(shared.files.values(), token)
    own = _own_card(shared.files.get(CARD_FILE))
    # Which needs the model that it is loaded on.
    is_adapter = "config.json" not in shared.files
    notice = "it is an adapter" if is_adapter else require_loadable(folder)
    repository = open_repository(repo_id, private, revision, token)
    text, origin = (own, "as in the folder") if is_adapter else _card(folder, own, repository, token, added)
    files: dict[str, Path | bytes] = {**shared.files}
    files.pop(CARD_FILE, None)
    files |= {name: content.encode() for name, content in (added or {}).items()}
    if text is not None:
        files[CARD_FILE] = text.encode()
    if not is_adapter:
        _require_code_beside_code(files, repository)
    url, commit = push_files(files, repository, message or "Upload model with moe_hf", token)
    return PushReport(
        repo_id=repository.repo_id,
        url=url,
        commit=commit,
        is_new=commit != repository.head,
        private=repository.private,
        names=sorted({*shared.files, *files}),
        left_out=shared.left_out,
        removed=sorted(stale_weights(files, repository)),
        card=origin,
        notice=notice,
    )


def require_token(token: str | None = None) -> str:
    """The token, or that of HF_TOKEN or of `hf auth login`.

    Raises:
        ConfigError: there is none.
    """
    found = token or get_token()
    if found is None:
        raise ConfigError("pushing needs a token of the Hub; log in with `hf auth login`, or set HF_TOKEN")
    return found


def open_repository(repo_id: str, private: bool, revision: str | None, token: str) -> Repository:
    """The repository, made where there is none, at its branch, made from `main` where there is none."""
    api = HfApi(token=token)
    with in_words(repo_id, revision):
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        known = api.repo_info(repo_id)
        if private and not known.private:
            raise CheckpointError(
                f"{repo_id} is there already and public, so what is pushed would be; make it private in its settings "
                "first, or push without --private"
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        branch = revision or "main"
        info: Any = api.repo_info(repo_id, revision=branch)
    names = frozenset(file.rfilename for file in info.siblings or ())
    return Repository(repo_id, branch, str(info.sha), names, bool(known.private))


def push_files(
    files: Mapping[str, Path | bytes], repository: Repository, message: str, token: str, **options: Any
) -> tuple[str, str]:
    """Add files to a repository as one commit on top of what it was opened at; returns address and SHA of the commit.

    Weights that are there and not among the files are removed: transformers would read them instead.

    Args:
        files: by their names on the Hub; paths, or what is in them.
        repository: from `open_repository`. Where it has a newer commit by now, nothing is added.
        message: of the commit.
        token: may write.
        **options: as of `HfApi.create_commit`.
    """
    operations: list[Any] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in stale_weights(files, repository)]
    with in_words(repository.repo_id, repository.revision):
        info = HfApi(token=token).create_commit(
            repository.repo_id,
            operations,
            commit_message=message,
            revision=repository.revision,
            parent_commit=repository.head,
            **options,
        )
    return str(info.commit_url), str(info.oid)


def stale_weights(files: Iterable[str], repository: Repository) -> list[str]:
    """Weights at the root of a repository that are not among those that take their place."""
    names = set(files)
    if not any(WEIGHT_FILE.fullmatch(name) for name in names):
        return []
    return [name for name in repository.names if WEIGHT_FILE.fullmatch(name) and name not in names]


def _require_code_beside_code(files: Iterable[str], repository: Repository) -> None:
    """Refuse to leave the code of a self-contained push beside a `config.json` and a card that know nothing of it."""
    there = sorted(name for name in repository.names if _CODE.fullmatch(name))
    if there and not any(_CODE.fullmatch(name) for name in files):
        raise CheckpointError(
            f"{repository.repo_id} holds code that defines its model ({listed(there)}), and this push has none; push "
            "with --self_contained as before, delete the Python files there first, or push to another repository"
        )


def card_there(repository: Repository, token: str) -> str | None:
    """The card that a repository has; None without one."""
    if CARD_FILE not in repository.names:
        return None
    with in_words(repository.repo_id, repository.head), tempfile.TemporaryDirectory() as folder:
        path = HfApi(token=token).hf_hub_download(
            repository.repo_id, CARD_FILE, revision=repository.head, local_dir=folder
        )
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _own_card(path: Path | None) -> str | None:
    """The card in the folder, whose metadata, if it has any, can be read."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8 ({error}); save it as such") from error
    split_card(text)
    return text


def _card(
    folder: Path, own: str | None, repository: Repository, token: str, added: Mapping[str, str] | None
) -> tuple[str | None, str]:
    """The card to push, None to leave the one that is there, and where it comes from.

    A card that somebody wrote is never replaced by one that this package wrote, wherever the two lie.
    """
    name = repository.repo_id
    # None: the folder's own config.json says so.
    has_code = True if added and any(file.endswith(".py") for file in added) else None
    if own is not None and not is_unedited(own):
        more = []
        if not split_card(own).metadata:
            own = with_metadata(own, split_card(card_of_folder(folder, name, get_moe_model_info, has_code)).metadata)
            more.append("metadata")
        if has_code and "trust_remote_code" not in own:
            own = f"{own.rstrip()}\n\n{how_to_load(name, loading_of_folder(folder, has_code)[0])}"
            more.append("how to load it")
        return own, f"{CARD_FILE} of the folder" + (f", with {' and '.join(more)} added" if more else "")
    there = card_there(repository, token)
    if there is not None and not is_unedited(there):
        return None, "the one on the Hub, which somebody wrote or changed"
    if own is not None:
        text = renamed(own, name)
        if has_code:
            text = with_section(text, how_to_load(name, loading_of_folder(folder, has_code)[0]))
        return text, f"{CARD_FILE} of the folder, for {name}"
    return card_of_folder(folder, name, get_moe_model_info, has_code), "written from the model's configuration"
