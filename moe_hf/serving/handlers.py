"""transformers' handlers of chats and completions, with requests checked and settings read as in a local chat."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import BaseGenerateManager, BaseHandler, GenerationState, Modality

from moe_hf.serving.batching import Together
from moe_hf.serving.calls import current_call
from moe_hf.serving.generation import TakingTurns, served_by
from moe_hf.serving.requests import RequestError, checked_chat, checked_completion
from moe_hf.serving.served import ServedModels

# An answer's most tokens where neither the request nor the model says.
LONGEST_ANSWER = 1024
# Of a request, beyond what transformers' handlers read.
_EXTRA_SETTINGS = ("top_k", "repetition_penalty")


class Managers(GenerationState):
    """Which model's answers are generated together; those of the others take turns.

    Args:
        turns: generates one answer after the other.
        together: by the name of the model.
    """

    def __init__(self, turns: TakingTurns, together: Mapping[str, Together] | None = None) -> None:
        super().__init__()
        self._turns, self._together = turns, together or {}

    def use_continuous_batching(self, model: Any, modality: Modality) -> bool:
        """Whether the handler is to make lists of token ids, not tensors: for the model of the current call."""
        return served_by(current_call()).name in self._together

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        """The manager of a model."""
        return self._together.get(model_id, self._turns)

    def is_cb_alive(self) -> bool:
        """Whether every thread that generates still runs."""
        return all(manager.is_alive for manager in self._together.values())

    def shutdown(self) -> None:
        """Stops all managers."""
        for manager in (self._turns, *self._together.values()):
            manager.stop()


class _Checked(BaseHandler):
    """What both handlers share. The fields were checked: transformers' own list of allowed ones is not asked."""

    _valid_params_class = None
    model_manager: ServedModels

    def _enter(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Takes down what this package reads itself, and leaves the rest to transformers' handler."""
        call = current_call()
        call.model = self.model_manager.find(fields.get("model"))
        fields["model"] = call.model.name
        if "max_completion_tokens" in fields:
            # Its newer word for the same, which 5.17 does not know.
            fields["max_tokens"] = fields.pop("max_completion_tokens")
        call.seed = fields.pop("seed", None)
        call.settings = {name: fields.pop(name) for name in _EXTRA_SETTINGS if name in fields}
        return fields

    def _resolve_model(self, body: dict[str, Any]) -> Any:
        return body["model"], *self.model_manager.load_model_and_processor(body["model"])

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        call = current_call()
        served = served_by(call)
        config: GenerationConfig = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        if "max_tokens" not in body:
            config.max_new_tokens = model_generation_config.max_new_tokens or LONGEST_ANSWER
        # Else generate warns that both are set, and the one that came with the model is not what was asked for.
        config.max_length = None
        for name, value in call.settings.items():
            setattr(config, name, value)
        if body.get("temperature"):
            # Whoever names a temperature wants it to have an effect, whatever the model's own file says.
            config.do_sample = True
        if not config.do_sample:
            config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
        config.num_beams = config.num_return_sequences = 1
        config.eos_token_id = sorted(served.stop_ids) or None
        pad = served.tokenizer.pad_token_id
        config.pad_token_id = pad if pad is not None else min(served.stop_ids, default=0)
        embedding: Any = served.model.get_input_embeddings()
        vocabulary = int(embedding.weight.shape[0])
        if any(int(token) >= vocabulary for token in body.get("logit_bias") or {}):
            raise RequestError(400, f"logit_bias names tokens that {served.name} has not; it has {vocabulary}")
        if config.sequence_bias == {}:
            config.sequence_bias = None
        return config


class ChatHandler(_Checked, ChatCompletionHandler):
    """Answers `/v1/chat/completions`."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """The answer, or a stream of it; raises RequestError."""
        fields = self._enter(checked_chat(body))
        current_call().is_chat = True
        return await super().handle_request(fields, request_id)


class TextHandler(_Checked, CompletionHandler):
    """Answers `/v1/completions`."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """The answer, or a stream of it; raises RequestError."""
        return await super().handle_request(self._enter(checked_completion(body)), request_id)
