"""Puts a card of this package beside a model that `push_to_hub` shares, in place of transformers' empty form."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from moe_hf.base.errors import CheckpointError
from moe_hf.models.cards.card import CARD_FILE, is_unedited, split_card
from moe_hf.models.cards.described import described_card
from moe_hf.models.cards.loading import Loading, task_of
from moe_hf.models.info import get_moe_model_info


def put_card(model: Any, folder: str | os.PathLike, repo_id: str, revision: str | None, token: Any) -> None:
    """Write the card of a model into a folder that is about to be pushed, unless somebody wrote the one on the Hub.

    Args:
        model: of this package.
        folder: where transformers has put a card: that of `main`, or its form with the tags that were asked for.
        repo_id: where it will be pushed.
        revision: the branch; None is `main`.
        token: as `huggingface_hub` takes it.
    """
    path = Path(folder, CARD_FILE)
    there = _card_on_the_hub(repo_id, revision, token)
    if there is None or is_unedited(there):
        auto_class, pipeline_tag = task_of(type(model).__name__)
        loading = Loading(model.config.model_type, is_own=True, auto_class=auto_class, has_tokenizer=None)
        info = get_moe_model_info(model.config)
        path.write_text(described_card(repo_id, info, loading, pipeline_tag, tags=_tags(path)), encoding="utf-8")
    elif revision is not None:
        path.write_text(there, encoding="utf-8")


def _card_on_the_hub(repo_id: str, revision: str | None, token: Any) -> str | None:
    """The card that a branch has, or `main` where there is no such branch yet; None without one."""
    api = HfApi(token=token)
    for name in dict.fromkeys((revision, None)):
        try:
            path = api.hf_hub_download(repo_id, CARD_FILE, revision=name)
        except RevisionNotFoundError:
            continue
        except EntryNotFoundError:
            return None
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return None


def _tags(path: Path) -> list[str]:
    try:
        tags = split_card(path.read_text(encoding="utf-8")).metadata.get("tags")
    except (CheckpointError, OSError):
        return []
    return [str(tag) for tag in tags] if isinstance(tags, list) else []
