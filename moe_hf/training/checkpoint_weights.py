"""Whether the weights of a checkpoint are those of the model that is to go on from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from moe_hf.base.errors import CheckpointError


@contextmanager
def same_sizes_required(folder: str) -> Iterator[None]:
    """Within the `with` block PyTorch loads the checkpoint in `folder`; its complaint about sizes becomes ours.

    Raises:
        CheckpointError: a tensor has another shape in the checkpoint than in the model; names both.
    """
    try:
        yield
    except RuntimeError as error:
        # From load_state_dict, one line per tensor: which, the checkpoint's shape, the model's.
        differing = [line.strip() for line in str(error).splitlines() if "size mismatch for " in line]
        if not differing:
            raise
        raise CheckpointError(
            f"{folder!r} holds a model of other sizes ({len(differing)} tensors differ): {differing[0]} Resume with "
            "the settings of the run that wrote it, or start without resuming"
        ) from error


def load_as_saved(model: Any, folder: str, load_result: Any) -> bool:
    """Load a checkpoint again by `from_pretrained` where its names differ from the model's; whether all is well.

    Trainer loads a checkpoint's tensors by name. Models whose experts have other names on disk than in memory
    (Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V3) would go on with the experts they happen to have.

    Args:
        model: that the checkpoint was loaded into.
        folder: of the checkpoint.
        load_result: what `load_state_dict` returned.

    Raises:
        CheckpointError: the checkpoint lacks tensors of the model, or has others.
    """
    tensors = model.state_dict()
    missing = set(load_result.missing_keys)
    loaded = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
    # A tied tensor is stored under one of its names.
    lost = [name for name in missing if tensors[name].data_ptr() not in loaded]
    if not lost and not load_result.unexpected_keys:
        return True
    if not isinstance(model, PreTrainedModel):
        return False
    loader: Any = type(model)
    # Of other sizes: told below.
    fresh, info = loader.from_pretrained(
        folder, config=model.config, dtype=model.dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        names = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise CheckpointError(
            f"{folder!r} does not fit the model: no usable {', '.join(names[:5])} ({len(names)} in all); resume with "
            "the model that wrote it"
        )
    # In place: others may hold the model and its parameters by now.
    model.load_state_dict(fresh.state_dict())
    return True
