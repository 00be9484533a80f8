"""The models of a server: only these can be asked for, and no request loads another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import Modality

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.serving.requests import RequestError
from moe_hf.text.encoding import TextEncoder


@dataclass(frozen=True)
class ServedModel:
    """A model that requests can name.

    Attributes:
        name: what requests call it.
        model: any transformers causal language model, in eval mode.
        tokenizer: a fast one; with a chat template the model takes conversations.
        stop_ids: tokens that end an answer.
        context_limit: most tokens of prompt and answer together; None for no limit.
        routers: with the decoder layer of each; empty for a dense model.
        experts_per_token: for routers that return their logits alone.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    context_limit: int | None
    routers: tuple[tuple[int, nn.Module], ...] = ()
    experts_per_token: int = 1


class Prompter:
    """The processor that transformers' handlers see: a tokenizer whose chat template writes every control token.

    What a message holds never becomes one, as in a chat with the model itself.
    """

    def __init__(self, served: ServedModel) -> None:
        self.tokenizer = served.tokenizer
        self._name = served.name
        self._encoder = TextEncoder(served.tokenizer)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], return_tensors: str | None = None, **options: Any
    ) -> BatchEncoding:
        """The conversation up to the answer; the other options are those of models that see and hear.

        Raises:
            RequestError: the model has no chat template, or it refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            raise RequestError(
                400,
                f"{self._name} has no chat template, so it knows no turns; ask /v1/completions to continue a text",
                "no_chat_template",
            )
        try:
            ids = self._encoder.encode(messages, add_generation_prompt=True)
        except ConfigError as error:
            raise RequestError(400, str(error)) from error
        if return_tensors is None:
            return BatchEncoding({"input_ids": ids})
        input_ids = torch.tensor([ids], dtype=torch.long)
        return BatchEncoding({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})


class ServedModels(ModelManager):
    """Finished models by name, where transformers' manager would load what a request names.

    Raises:
        ConfigError: there is no model, two have one name, or a tokenizer is not a fast one.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        super().__init__(device="cpu", model_timeout=-1)
        self.served = {served.name: served for served in models}
        if not models or len(self.served) < len(models):
            names = ", ".join(served.name for served in models)
            raise ConfigError(f"models to serve must be one or more with different names, got {names or 'none'}")
        for served in models:
            if not served.tokenizer.is_fast:
                raise ConfigError(
                    f"the tokenizer of {served.name} is {type(served.tokenizer).__name__}, which cannot stream text; "
                    "serve a model with a fast tokenizer (tokenizer.json)"
                )
        self._prompters = {served.name: Prompter(served) for served in models}

    def find(self, name: str | None) -> ServedModel:
        """The model of that name; without a name the only one.

        Raises:
            RequestError: there is no such model.
        """
        if name is None and len(self.served) == 1:
            return next(iter(self.served.values()))
        if name not in self.served:
            given = "no model is named" if name is None else f"there is no model {name[:100]!r} here"
            hint = did_you_mean(name or "", list(self.served))
            raise RequestError(404, f"{given}{hint}; served are {', '.join(self.served)}", "model_not_found")
        return self.served[name]

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """The name as it is: nothing here comes from the Hub."""
        return model_id

    def load_model_and_processor(
        self, model_id_and_revision: str, *args: Any, **kwargs: Any
    ) -> tuple[PreTrainedModel, Any]:
        """Model and processor of that name; raises as `find` does."""
        served = self.find(model_id_and_revision)
        return served.model, self._prompters[served.name]

    def list_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        """The models, as `/v1/models` shows them."""
        return [{"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in self.served]

    # What 5.17 calls it.
    get_gen_models = list_models

    @staticmethod
    def get_model_modality(model: PreTrainedModel, processor: Any = None) -> Modality:
        """Text in, text out: transformers looks for the class among its own."""
        return Modality.LLM

    def shutdown(self) -> None:
        """Nothing: the models belong to the caller."""
