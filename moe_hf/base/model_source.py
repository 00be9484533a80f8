"""Tells the name of a model's folder from a Hub id, so that a mistyped folder is not looked for on the network."""

import re
from pathlib import Path

from moe_hf.base.errors import CheckpointError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def folder_or_hub_id(source: str, needs_owner: bool = False) -> str:
    """The folder that `source` names, with `~` filled in, or `source` itself where it can be a Hub id.

    Args:
        source: what a person gave as the place of a model.
        needs_owner: a Hub id must be of the form owner/name; a few old ones, such as gpt2, have no owner.

    Raises:
        CheckpointError: it is no folder and can't be a Hub id.

    >>> folder_or_hub_id("openai-community/gpt2")
    'openai-community/gpt2'
    """
    path = Path(source).expanduser()
    # The empty name would be the present folder.
    if source and path.is_dir():
        return str(path)
    # "runs/first" is meant as a folder where there is a folder runs/, else it may be a Hub id.
    meant_as_folder = source.startswith((".", "~", "/")) or ("/" in source and path.parent.is_dir())
    if meant_as_folder or not _HUB_ID.fullmatch(source) or (needs_owner and "/" not in source):
        raise CheckpointError(f"there is no folder {source}; name a model folder or a Hub id (openai-community/gpt2)")
    return source
