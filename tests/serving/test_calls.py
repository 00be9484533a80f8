"""Which call a task answers."""

import asyncio

from moe_hf.serving.calls import begin_call, current_call


def test_tasks_know_their_own_call_and_what_they_start_knows_it_too() -> None:
    async def answer() -> bool:
        call = begin_call()
        await asyncio.sleep(0)

        async def inner() -> bool:
            return current_call() is call

        return await asyncio.create_task(inner()) and not call.stop.is_set()

    async def both() -> list[bool]:
        return await asyncio.gather(answer(), answer())

    assert asyncio.run(both()) == [True, True]
