"""Makes sure that a dense checkpoint and the model to build fit: no weight is lost, none is misread, none left out."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import json_object
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.reading import model_type_in
from moe_hf.models.dense.checkpoint_files import is_head_tied, listed
from moe_hf.models.dense.format import DenseFormat
from moe_hf.models.dense.lazy_tensors import LazyTensor

_WAY_OUT = "drop the override, or choose another checkpoint"


def fitting_state(
    dense_format: DenseFormat,
    slices: Mapping[str, Any],
    weights_file: str,
    config: MoEDecoderConfig,
    body: type[PreTrainedModel],
    with_head: bool = True,
    dtype: torch.dtype | None = None,
) -> dict[str, LazyTensor]:
    """The state dict of the model to build, in which every dense weight has its place.

    Where `expert_init` is "copy" and the weights of a token's experts sum to 1, it computes what the dense model did.
    What that has none of is drawn from `expert_init_seed`: routers, shared experts, all FFNs of a Mamba.

    Args:
        dense_format: that of the checkpoint.
        slices: name to unread slice.
        weights_file: one of its files; the dense model's `config.json` is looked for beside it.
        config: of the model to build.
        body: class of that model without its head.
        with_head: whether it has a language-model head.
        dtype: as in `DenseFormat.state_dict`.

    Raises:
        CheckpointError: tensors are missing, left over, or misfitting, or a field contradicts the dense model.
    """
    _require_fixed_fields(dense_format, weights_file, config)
    was_tied = is_head_tied(
        weights_file, dense_format.head_is_tied or _type_of(weights_file) in dense_format.tied_types
    )
    state = dense_format.state_dict(slices, config, with_head, was_tied, dtype)
    _require_same_tensors(dense_format, state, config, body)
    return state


def _type_of(weights_file: str) -> str | None:
    path = Path(weights_file).parent / "config.json"
    return json_object(path).get("model_type") if path.is_file() else None


def _require_fixed_fields(dense_format: DenseFormat, weights_file: str, config: MoEDecoderConfig) -> None:
    """Compare the configuration with that of the dense model, where its shapes say nothing."""
    path = Path(weights_file).parent / "config.json"
    if not path.is_file():
        return
    if model_type_in(json_object(path), path.parent) not in config.dense_model_types:
        return
    original = type(config).from_pretrained(path.parent)
    wrong = [
        f"{name}={getattr(original, name)!r}, but {getattr(config, name)!r} is asked for"
        for name in dense_format.fixed_fields
        if not _is_same(name, getattr(original, name), getattr(config, name))
    ]
    if wrong:
        raise CheckpointError(f"the {dense_format.name} checkpoint was trained with {'; '.join(wrong)}; {_WAY_OUT}")


def _is_same(name: str, one: Any, other: Any) -> bool:
    if name != "hidden_act" or one == other:
        return one == other
    # Some activations have several names.
    x = torch.linspace(-4.0, 4.0, 65)
    with torch.no_grad():
        return torch.allclose(ACT2FN[one](x), ACT2FN[other](x), atol=1e-5)


def _require_same_tensors(
    dense_format: DenseFormat, state: Mapping[str, LazyTensor], config: MoEDecoderConfig, body: type[PreTrainedModel]
) -> None:
    # The loader would draw what is missing, and drop what is too much, with a warning at most.
    with torch.device("meta"):
        # A copy, since a model writes into the configuration that it is made of.
        model = body(copy.deepcopy(config))
    needed = {f"model.{name}": tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.get_shape()) for name, value in state.items() if name.startswith("model.")}
    wrong = []
    if fresh := needed.keys() - given.keys():
        wrong.append(f"cannot give {len(fresh)} of the model's tensors ({listed(fresh)})")
    if lost := given.keys() - needed.keys():
        wrong.append(f"gives {len(lost)} that the model would drop ({listed(lost)})")
    if misfits := {name for name in given.keys() & needed.keys() if given[name] != needed[name]}:
        wrong.append(f"gives {len(misfits)} of other shapes than the model's ({listed(misfits)})")
    if wrong:
        raise CheckpointError(f"the {dense_format.name} checkpoint {' and '.join(wrong)}; {_WAY_OUT}")
