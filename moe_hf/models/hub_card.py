"""Lets `push_to_hub` put a card beside a model."""

import os
from collections.abc import Callable
from typing import Any, ClassVar

from transformers import PreTrainedModel


class PushesCard(PreTrainedModel):
    """Base of models that are pushed with a card.

    Attributes:
        put_card: puts it into a folder that is about to be pushed, as `put_card` of `moe_hf.models.cards.pushed` does.
            `moe_hf.public` sets it: who writes cards counts parameters, and has to know the models that stand on this
            class. None leaves what transformers has put there.
    """

    put_card: ClassVar[Callable[..., None] | None] = None

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, *args: Any, token: Any = None, **kwargs: Any
    ) -> Any:
        put_card = type(self).put_card
        if put_card is not None:
            put_card(self, working_dir, repo_id, kwargs.get("revision"), token)
        return super()._upload_modified_files(working_dir, repo_id, *args, token=token, **kwargs)
