"""Generates the answers of one model together, by transformers' continuous batching."""

import asyncio
import copy
import math
import time
import uuid
from collections.abc import Callable
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.cli.serving.utils import BaseGenerateManager

from moe_hf.base.errors import ConfigError, first_line
from moe_hf.serving.calls import Call, current_call
from moe_hf.serving.generation import Answer, fit_into_context, served_by, stream_error, take_stops
from moe_hf.serving.metrics import Meter
from moe_hf.serving.requests import RequestError
from moe_hf.serving.served import ServedModel

# Tokens of one page: transformers' default is made for contexts of many thousands.
_PAGE_TOKENS = 64
# The name of that setting in 5.17.
_PAGE_SIZE = "page_size" if "page_size" in ContinuousBatchingConfig.__dataclass_fields__ else "block_size"
# Of the processors of logits, transformers makes those whose setting is not neutral when it starts; each request then
# brings its own values.
_NOT_NEUTRAL = {"do_sample": True, "temperature": 0.5, "top_k": 2, "top_p": 0.5}
_FAILED = "the model has failed; restart the server"
_WATCH_SECONDS = 0.5


class Together(BaseGenerateManager):
    """Answers of one model, a token of each in every step.

    Seeds have no effect, since all answers draw from the same random numbers, and settings that look back at an answer
    (`repetition_penalty`, `logit_bias`) are refused.

    Args:
        served: its layers keep keys and values alone.
        cache_tokens: tokens of all prompts and answers that are kept at once; who finds no room waits.
        meter: counts tokens and time.

    Raises:
        ConfigError: a layer carries a state, or the model itself asks for settings that can't be had here.
    """

    def __init__(self, served: ServedModel, cache_tokens: int, meter: Meter) -> None:
        own: Any = copy.deepcopy(served.model.generation_config)
        if _looks_back(own):
            raise ConfigError(
                f"the generation config of {served.name} has a repetition_penalty or sequence_bias, which continuous "
                "batching can't apply; serve it without"
            )
        for name, value in {**_NOT_NEUTRAL, "eos_token_id": sorted(served.stop_ids) or -1}.items():
            setattr(own, name, value)
        pages: dict[str, Any] = {_PAGE_SIZE: _PAGE_TOKENS, "num_blocks": math.ceil(cache_tokens / _PAGE_TOKENS)}
        model: Any = served.model
        config = ContinuousBatchingConfig(per_request_processors=True, max_batch_tokens=512, **pages)
        try:
            self._batching = model.init_continuous_batching(own, config)
            _start(self._batching)
        except ConfigError:
            raise
        # A model of transformers' own whose layers it has no pages for.
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"{served.name} can't be served with --continuous_batching: {first_line(error)}; leave that out"
            ) from error
        self._meter, self._name = meter, served.name
        self._limit = cache_tokens
        self._running = 0
        self._since = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the thread that generates still runs."""
        return self._batching.background_thread_status.fatal_error is None and self._batching.is_running()

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple["asyncio.Queue[Any]", Answer]:
        """As `TakingTurns.generate_streaming`."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        answer = self._begin(inputs["input_ids"], gen_config, queue.put_nowait, response_parser)
        return queue, answer

    async def generate_non_streaming(
        self, model: PreTrainedModel, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, list[int]]:
        """As `TakingTurns.generate_non_streaming`."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        answer = self._begin(inputs["input_ids"], gen_config, queue.put_nowait)
        texts = []
        try:
            while (item := await queue.get()) is not None:
                if not isinstance(item, str):
                    raise RuntimeError(item.msg)
                texts.append(item)
        finally:
            answer.cancel()
        return "".join(texts), len(inputs["input_ids"]), answer.token_ids

    def stop(self) -> None:
        """Ends the thread; what it had not finished is lost."""
        self._batching.stop(block=True, timeout=5, hard_stop=True)

    def _begin(
        self, ids: list[int], gen_config: GenerationConfig, hand_over: Callable[[Any], None], parser: Any = None
    ) -> Answer:
        call = current_call()
        fit_into_context(call, len(ids), gen_config, self._limit)
        settings = self._settings(call, gen_config)
        if not self.is_alive:
            raise RequestError(503, _FAILED, "server_error")
        number = str(uuid.uuid4())
        answer = _Together(call, take_stops(gen_config), hand_over, self._meter, parser)
        answer.count_prompt(len(ids))
        done = False

        def finish(early: bool = True) -> None:
            nonlocal done
            if not done:
                done = True
                self._count(-1)
                if early:
                    self._batching.cancel_request(number)
                    self._batching.output_router.result_handlers.pop(number, None)
                hand_over(None)

        def take(output: Any) -> None:
            if done:
                return
            for token in output.generated_tokens[answer.total_tokens :]:
                if not answer.is_over:
                    answer.add(token)
            if output.error is not None:
                hand_over(stream_error(RuntimeError(output.error)))
            if output.is_finished() or output.error is not None or answer.is_over:
                answer.end()
                finish(early=not output.is_finished())

        loop = asyncio.get_running_loop()

        def watch() -> None:
            # What is asked for while the thread dies, transformers may never come to.
            if not done and not self.is_alive:
                hand_over(stream_error(RuntimeError(_FAILED)))
                finish()
            elif not done:
                loop.call_later(_WATCH_SECONDS, watch)

        answer.on_cancel = finish
        self._count(1)
        self._batching.register_result_handler(number, take)
        self._batching.add_request(ids, request_id=number, streaming=True, **settings)
        loop.call_later(_WATCH_SECONDS, watch)
        return answer

    def _settings(self, call: Call, gen_config: Any) -> dict[str, Any]:
        """What `add_request` takes of a request's settings."""
        if _looks_back(gen_config):
            raise RequestError(400, "repetition_penalty and logit_bias are not served with --continuous_batching")
        vocabulary = int(served_by(call).model.config.get_text_config().vocab_size)
        # The likeliest token alone is the greedy choice.
        top_k = (gen_config.top_k or vocabulary) if gen_config.do_sample else 1
        return {
            "max_new_tokens": gen_config.max_new_tokens,
            "eos_token_id": gen_config.eos_token_id or -1,
            "temperature": float(gen_config.temperature or 1.0),
            "top_p": float(1.0 if gen_config.top_p is None else gen_config.top_p),
            "top_k": int(top_k),
        }

    def _count(self, change: int) -> None:
        """On the event loop alone: how many answers run, and since when there is one."""
        self._meter.add("moe_hf_generating", change)
        if self._running:
            seconds = time.perf_counter() - self._since
            self._meter.add("moe_hf_generation_seconds_total", seconds, model=self._name)
        self._running += change
        self._since = time.perf_counter()


class _Together(Answer):
    """An answer that others are generated with."""

    on_cancel: Callable[[], None]

    def cancel(self) -> None:
        super().cancel()
        self.on_cancel()


def _start(batching: Any) -> None:
    """Starts the thread that generates, and waits until it has its pages: 5.17 finds only there that it can't."""
    batching.start()
    while batching.batch_processor is None:
        if not batching.is_running():
            raise ValueError(batching.background_thread_status.fatal_error or "its thread has ended")
        time.sleep(0.01)


def _looks_back(config: Any) -> bool:
    return config.repetition_penalty not in (None, 1.0) or bool(config.sequence_bias)
