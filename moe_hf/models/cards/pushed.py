"""Gives the models that `push_to_hub` shares a card of this package, in place of transformers' empty form."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel

from moe_hf.base.errors import CheckpointError
from moe_hf.models.cards.card import CARD_FILE, is_unedited, split_card
from moe_hf.models.cards.described import described_card
from moe_hf.models.cards.loading import Loading, task_of


class PushesCard(PreTrainedModel):
    """Base of models that are pushed with a card, unless somebody wrote the one on the Hub.

    Attributes:
        count: counts the parameters for it (`get_moe_model_info`). `moe_hf.public` sets it, since it has to know the
            models that stand on this class.
    """

    count: ClassVar[Callable[[PreTrainedConfig], dict[str, Any]] | None] = None

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, *args: Any, token: Any = None, **kwargs: Any
    ) -> Any:
        # transformers has put a card there: that of `main`, or its form with the tags that were asked for.
        path = Path(working_dir, CARD_FILE)
        there = _card_on_the_hub(repo_id, kwargs.get("revision"), token)
        if type(self).count is not None and (there is None or is_unedited(there)):
            auto_class, pipeline_tag = task_of(type(self).__name__)
            config: Any = self.config
            loading = Loading(config.model_type, is_own=True, auto_class=auto_class, has_tokenizer=None)
            text = described_card(repo_id, type(self).count(config), loading, pipeline_tag, tags=_tags(path))
            path.write_text(text, encoding="utf-8")
        elif there is not None and kwargs.get("revision") is not None:
            path.write_text(there, encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, token=token, **kwargs)


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
