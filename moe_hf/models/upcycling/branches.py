"""Makes one Mixture of Experts of several fine-tunes of one model: each gives experts, the rest is their mean."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.dense.lazy_tensors import LazyTensor
from moe_hf.models.upcycling.planned import PlannedModel

# What two fine-tunes of one model may say differently without computing anything else.
_INDIFFERENT = (
    "transformers_version _name_or_path dtype torch_dtype use_cache architectures bos_token_id eos_token_id "
    "pad_token_id attention_dropout attn_pdrop embd_dropout resid_dropout initializer_range problem_type id2label "
    "label2id max_position_embeddings"
).split()


def mixed_plan(plans: Sequence[PlannedModel], names: Sequence[str], granularity: int = 1) -> PlannedModel:
    """Branch-Train-MiX (Sukhbaatar et al. 2024, section 3.2): expert i comes from the i-th branch, in turn.

    Args:
        plans: of the branches, made with the same choices.
        names: what the user called them.
        granularity: slices of each version of an FFN.

    Raises:
        CheckpointError: they are not fine-tunes of one model.
        ConfigError: the branches can't have equally many experts.
    """
    first, *others = plans
    for plan, name in zip(others, names[1:], strict=True):
        _require_same(first, plan, names[0], name)
    versions = first.wanted.num_experts // granularity
    if versions % len(plans):
        raise ConfigError(
            f"num_experts={first.wanted.num_experts} is not allowed with {len(plans)} branches; it must be a multiple "
            f"of {len(plans) * granularity}"
        )
    state: dict[str, LazyTensor] = {}
    for key, value in first.state.items():
        state[key] = value.mixed([plan.state[key] for plan in others])
        state[key].in_float32 = value.in_float32
    changes = [*first.changes, f"it is made of {len(plans)} models, the mean of which computes what none of them did"]
    return first._replace(state=state, changes=changes)


def _require_same(first: PlannedModel, other: PlannedModel, name: str, other_name: str) -> None:
    ours, theirs = _said(first.config), _said(other.config)
    if wrong := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        key = wrong[0]
        raise CheckpointError(
            f"{other_name} has {key}={theirs.get(key)!r} where {name} has {ours.get(key)!r}; branches must be "
            "fine-tunes of one model"
        )
    if first.state.keys() != other.state.keys():
        raise CheckpointError(f"{other_name} has other tensors than {name}; branches must be fine-tunes of one model")


def _said(config: PreTrainedConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in _INDIFFERENT}
