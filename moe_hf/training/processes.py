"""Agreement between the processes of a run: one decides, the others hear of it."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from moe_hf.base.errors import CheckpointError, ConfigError

Answer = TypeVar("Answer")


def main_process_says(args: TrainingArguments, decide: Callable[[], Answer]) -> Answer:
    """What `decide` returns on the main process, on all of them; it is called on no other.

    Raises:
        ConfigError, CheckpointError: `decide` did; on all processes.
    """
    # A list, which accelerate fills in place.
    answer: list[Any] = [None]
    if args.process_index == 0:
        try:
            answer = [decide()]
        # An expected error is told as well: raised on this process alone, it would leave the others waiting.
        except (ConfigError, CheckpointError) as error:
            answer = [error]
    if args.world_size > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], (ConfigError, CheckpointError)):
        raise answer[0]
    decided: Answer = answer[0]
    return decided
