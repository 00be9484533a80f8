"""Answers one after the other."""

import asyncio
import json

import pytest
import torch
from transformers import GenerationConfig

from moe_hf.serving.calls import begin_call
from moe_hf.serving.generation import TakingTurns, fit_into_context, stream_error
from moe_hf.serving.metrics import Meter
from moe_hf.serving.requests import RequestError


def inputs_of(served, text: str):
    return served.tokenizer(text, return_tensors="pt")


def test_who_is_cancelled_while_waiting_never_runs_and_the_others_do(models) -> None:
    served = models[1]
    meter = Meter()

    async def ask(turns: TakingTurns, tokens: int) -> int:
        begin_call().model = served
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        _, _, ids = await turns.generate_non_streaming(served.model, None, inputs_of(served, "abc"), config, "id")
        return len(ids)

    async def three() -> list[int | BaseException]:
        turns = TakingTurns(meter)
        tasks = [asyncio.create_task(ask(turns, tokens)) for tokens in (8, 5, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        turns.stop()
        return done

    first, second, third = asyncio.run(three())
    assert (first, third) == (8, 3)
    assert isinstance(second, asyncio.CancelledError)
    assert meter.value("moe_hf_completion_tokens_total", model="babbler") == 11
    assert meter.value("moe_hf_generating") == 0


def test_a_failure_is_told_to_whoever_streams_and_the_next_answer_comes(models, monkeypatch) -> None:
    served = models[1]

    async def ask(turns: TakingTurns) -> list[object]:
        begin_call().model = served
        config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
        queue, _ = turns.generate_streaming(served.model, None, inputs_of(served, "abc"), config, "id")
        items = []
        while (item := await queue.get()) is not None:
            items.append(item)
        return items

    async def two() -> tuple[list[object], list[object]]:
        turns = TakingTurns(Meter())
        with monkeypatch.context() as patch:
            patch.setattr(served.model, "generate", lambda **options: [][0])
            failed = await ask(turns)
        answered = await ask(turns)
        turns.stop()
        return failed, answered

    failed, answered = asyncio.run(two())
    assert "index out of range" in failed[0].msg
    assert len("".join(answered)) == 2


def test_the_caller_keeps_its_random_numbers(models) -> None:
    served = models[1]

    async def ask() -> None:
        call = begin_call()
        call.model, call.seed = served, 5
        turns = TakingTurns(Meter())
        config = GenerationConfig(max_new_tokens=2, do_sample=True, pad_token_id=0)
        await turns.generate_non_streaming(served.model, None, inputs_of(served, "abc"), config, "id")
        turns.stop()

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    asyncio.run(ask())
    assert torch.equal(torch.rand(1), expected)


def test_a_prompt_must_fit_and_leaves_the_rest_to_the_answer(models) -> None:
    call = begin_call()
    call.model = models[0]
    config = GenerationConfig(max_new_tokens=50)
    fit_into_context(call, 90, config)
    assert config.max_new_tokens == 6
    for length, message in ((96, "96 tokens, the context of talker holds 96"), (0, "no tokens")):
        with pytest.raises(RequestError, match=message):
            fit_into_context(call, length, config)
    with pytest.raises(RequestError, match="80 tokens, --cache_tokens of the server holds 64"):
        fit_into_context(call, 80, config, 64)
    with pytest.raises(RequestError, match="99 tokens, the context of talker holds 96"):
        fit_into_context(call, 99, config, 1000)


def test_an_error_within_a_stream_stays_json() -> None:
    error = stream_error(ValueError('a "quoted" \\ word\nand more'))
    assert json.loads(f'{{"error": "{error.msg}"}}') == {"error": 'generation failed: a "quoted" \\ word'}
