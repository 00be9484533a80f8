"""The part of a checkpoint that transformers' Trainer does not keep: the place in a stream, the open logging window."""

import io
import os
from typing import Any

import torch
from transformers.utils import logging

from moe_hf.base.errors import CheckpointError

logger = logging.get_logger(__name__)

RUN_STATE_NAME = "run_state.pt"
"""File in a checkpoint with the place in a streamed data set and the unfinished logging window."""


def save_run_state(state: dict[str, Any], folder: str) -> None:
    """Write the state into a checkpoint folder.

    Raises:
        CheckpointError: it holds more than plain Python values and tensors, which could not be read back safely.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"the place in the training stream cannot be saved safely: its state_dict() must hold only plain Python "
            f"values and tensors ({error})"
        ) from error
    with open(os.path.join(folder, RUN_STATE_NAME), "wb") as file:
        file.write(buffer.getbuffer())


def load_run_state(folder: str) -> dict[str, Any]:
    """The state in a checkpoint folder; empty where none was written.

    Warns where the optimizer's is absent, too, which transformers passes over in silence.
    """
    # DeepSpeed keeps it in folders named after steps, FSDP in one of the optimizer's name.
    if not any(name.startswith(("optimizer", "rank", "global_step")) for name in os.listdir(folder)):
        logger.warning(
            f"{folder} holds weights alone, as save_only_model writes them: the optimizer and the course of the "
            "learning rate begin anew, so this is not the run that would have gone on"
        )
    path = os.path.join(folder, RUN_STATE_NAME)
    return torch.load(path, weights_only=True) if os.path.isfile(path) else {}
