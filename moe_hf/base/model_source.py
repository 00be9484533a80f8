"""Tells the name of a model's folder from a Hub id, and at once whether the Hub has it."""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from moe_hf.base.errors import CheckpointError

_SECONDS = 5.0
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def folder_or_hub_id(source: str, needs_owner: bool = False) -> str:
    """The folder that `source` names, with `~` filled in, or `source` itself where the Hub has a model of that id.

    Where the Hub can't be reached it is the folder of the local cache that holds the model.

    Args:
        source: what a person gave as the place of a model.
        needs_owner: a Hub id must be of the form owner/name; a few old ones, such as gpt2, have no owner.

    Raises:
        CheckpointError: it is no folder, and can't be a Hub id, is not on the Hub, or the Hub can't be reached.
    """
    path = Path(source).expanduser()
    # The empty name would be the present folder.
    if source and path.is_dir():
        return str(path)
    # "runs/first" is meant as a folder where there is a folder runs/, else it may be a Hub id.
    meant_as_folder = source.startswith((".", "~", "/")) or ("/" in source and path.parent.is_dir())
    if meant_as_folder or not _HUB_ID.fullmatch(source) or (needs_owner and "/" not in source):
        raise CheckpointError(f"there is no folder {source}; name a model folder or a Hub id (openai-community/gpt2)")
    found, reason = ask_hub(source)
    if found:
        return source
    cached = cached_folder(source)
    if found is None and cached is not None:
        return str(cached)
    raise CheckpointError(f"there is no folder {source}, and {reason}; name a model folder or another Hub id")


class HubAnswer(NamedTuple):
    """Whether the Hub has a repository, None where it could not be asked, and in words why it is not at hand."""

    found: bool | None
    reason: str


def ask_hub(repo_id: str, repo_type: Literal["model", "dataset"] = "model") -> HubAnswer:
    """What the Hub says of a repository, asked once and briefly.

    What reads a repository itself tries for up to a minute before it says that the network is absent.
    """
    # Slow to import, and not needed for a folder.
    from huggingface_hub import HfApi, errors

    try:
        HfApi().repo_info(repo_id, repo_type=repo_type, timeout=_SECONDS)
    except errors.GatedRepoError:
        return HubAnswer(True, "")
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        return HubAnswer(False, f"the Hub has no public {repo_type} {repo_id} (for a private one: hf auth login)")
    except Exception as error:
        # Whatever keeps the Hub from answering: no network, HF_HUB_OFFLINE, a proxy, a server that fails.
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return HubAnswer(None, f"the Hub can't be asked for the {repo_type} {repo_id} ({why})")
    return HubAnswer(True, "")


def cached_folder(repo_id: str) -> Path | None:
    """The folder in the local cache of the Hub that holds the newest known state of a model; None without one."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo_id, "config.json")
    return Path(config).parent if isinstance(config, str) else None
