"""Generates answers one after the other, each as it would be alone, and ends those that nobody waits for."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import BaseGenerateManager, _StreamError, response_events_to_chunks

from moe_hf.base.errors import first_line
from moe_hf.serving.answer_text import AnswerText
from moe_hf.serving.calls import Call, current_call
from moe_hf.serving.metrics import Meter
from moe_hf.serving.requests import RequestError
from moe_hf.serving.served import ServedModel


class Answer:
    """One answer while it comes: what `generate` calls its streamer, and what the handlers ask.

    Args:
        call: the request.
        stops: texts that end the answer.
        on_item: called with each piece of text, and with what a parser makes of tool calls and reasoning.
        meter: counts the tokens.
        parser: transformers' parser of such answers, for models that have one.
    """

    def __init__(
        self, call: Call, stops: list[str], on_item: Callable[[Any], None], meter: Meter, parser: Any = None
    ) -> None:
        served = served_by(call)
        self.call = call
        self.token_ids: list[int] = []
        self._on_item, self._parser = on_item, parser
        self._meter, self._name = meter, served.name
        self._text = AnswerText(served.tokenizer, stops, parser is not None, call.is_chat, self._show)
        self._prompt_seen = False
        if parser is not None:
            self._hand_over(parser.initial_events)

    @property
    def total_tokens(self) -> int:
        """Tokens generated so far, the one that ended the answer included."""
        return len(self.token_ids)

    @property
    def is_over(self) -> bool:
        """Whether no further token is wanted."""
        return self._text.is_stopped or self.call.stop.is_set()

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt on the first call, then one new token id per call."""
        if not self._prompt_seen:
            self._prompt_seen = True
            self.count_prompt(value.numel())
            return
        for token in value.reshape(-1).tolist():
            self.add(token)

    def count_prompt(self, tokens: int) -> None:
        """Counts what stands before the answer."""
        self._meter.add("moe_hf_prompt_tokens_total", tokens, model=self._name)

    def add(self, token: int) -> None:
        """Takes one token of the answer."""
        self.token_ids.append(token)
        self._meter.add("moe_hf_completion_tokens_total", model=self._name)
        self._text.add(token)

    def end(self) -> None:
        """Hands over what was held back."""
        self._text.end()
        if self._parser is not None:
            try:
                self._hand_over(self._parser.finalize()[1])
            except (ValueError, RuntimeError):
                # The answer was cut inside a tool call: there is nothing whole to hand over.
                pass

    def cancel(self) -> None:
        """Ends the answer at the next token."""
        self.call.stop.set()

    def _show(self, text: str) -> None:
        if self._parser is None:
            self._on_item(text)
        else:
            self._hand_over(self._parser.feed(text))

    def _hand_over(self, events: Any) -> None:
        for item in response_events_to_chunks(events):
            self._on_item(item)


class _StopWhenOver(StoppingCriteria):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._answer.is_over, dtype=torch.bool, device=input_ids.device)


class TakingTurns(BaseGenerateManager):
    """Answers of all models in the order of their requests, on one thread.

    One thread, since a seed starts random numbers that all of torch shares.

    Args:
        meter: counts tokens and time.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple["asyncio.Queue[Any]", Answer]:
        """A queue that the text will come in, None at its end, and the answer.

        Raises:
            RequestError: the prompt is empty, or too long for the model.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Any] = asyncio.Queue()

        def hand_over(item: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        call = current_call()
        fit_into_context(call, inputs["input_ids"].shape[-1], gen_config)
        answer = Answer(call, take_stops(gen_config), hand_over, self._meter, response_parser)

        def run() -> None:
            try:
                self._generate(model, inputs, gen_config, answer)
            except Exception as error:
                hand_over(stream_error(error))
            finally:
                hand_over(None)

        self._worker.submit(run)
        return queue, answer

    async def generate_non_streaming(
        self, model: PreTrainedModel, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, list[int]]:
        """Text, length of the prompt and token ids of a whole answer; raises as `generate_streaming`."""
        call = current_call()
        prompt_length = inputs["input_ids"].shape[-1]
        fit_into_context(call, prompt_length, gen_config)
        texts: list[str] = []
        answer = Answer(call, take_stops(gen_config), texts.append, self._meter)
        # Cancelled while it waits for its turn, it never runs.
        await asyncio.wrap_future(self._worker.submit(self._generate, model, inputs, gen_config, answer))
        return "".join(texts), prompt_length, answer.token_ids

    def stop(self) -> None:
        """Lets the thread end after what it does now."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _generate(self, model: Any, inputs: Any, gen_config: GenerationConfig, answer: Answer) -> None:
        if answer.is_over:
            return
        device = model.device
        started = time.perf_counter()
        self._meter.add("moe_hf_generating")
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                if answer.call.seed is None:
                    torch.seed()
                else:
                    torch.manual_seed(answer.call.seed)
                model.generate(
                    **inputs,
                    generation_config=gen_config,
                    streamer=answer,
                    stopping_criteria=StoppingCriteriaList([_StopWhenOver(answer)]),
                )
        finally:
            self._meter.add("moe_hf_generating", -1)
            seconds = time.perf_counter() - started
            self._meter.add("moe_hf_generation_seconds_total", seconds, model=served_by(answer.call).name)


def served_by(call: Call) -> ServedModel:
    """The model of a call, which its handler found before anything else."""
    assert call.model is not None
    return call.model


def fit_into_context(
    call: Call, prompt_length: int, gen_config: GenerationConfig, most_tokens: int | None = None
) -> None:
    """Cuts the longest answer to what the context of the model leaves.

    Args:
        call: knows its model.
        prompt_length: tokens that stand before the answer.
        gen_config: its `max_new_tokens` is cut.
        most_tokens: of prompt and answer, if that may be less than the context.

    Raises:
        RequestError: the prompt is empty, or leaves no room.
    """
    if prompt_length == 0:
        raise RequestError(400, "the prompt has no tokens; write something to continue")
    served = served_by(call)
    limits = {f"the context of {served.name}": served.context_limit, "--cache_tokens of the server": most_tokens}
    known = [(limit, name) for name, limit in limits.items() if limit is not None]
    if not known:
        return
    limit, holder = min(known)
    if prompt_length >= limit:
        raise RequestError(
            400,
            f"the prompt has {prompt_length} tokens, {holder} holds {limit} for prompt and answer; shorten it",
            "context_length_exceeded",
        )
    gen_config.max_new_tokens = min(gen_config.max_new_tokens or limit, limit - prompt_length)


def stream_error(error: Exception) -> Any:
    """What tells transformers' handlers that generation failed."""
    # They write the text between quotation marks as it is.
    return _StreamError(json.dumps(f"generation failed: {first_line(error)}")[1:-1])


def take_stops(gen_config: GenerationConfig) -> list[str]:
    """The stop strings, taken out of the configuration: the answer itself looks for them."""
    stops = gen_config.stop_strings or []
    gen_config.stop_strings = None
    return [stops] if isinstance(stops, str) else list(stops)
