"""Plans a Mixture of Experts of one of this package's families: any mixer, any router, any placement of experts."""

from typing import Any

import torch

from moe_hf.base.errors import CheckpointError
from moe_hf.models.auto import dense_model_types, family_of_dense
from moe_hf.models.dense.expert_init import require_granularity
from moe_hf.models.dense.fit import fitting_state
from moe_hf.models.dense.kept_logits import why_logits_change
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.parameter_kinds import IN_FLOAT32
from moe_hf.models.upcycling.opened import OpenedModel
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel


def plan_own(
    opened: OpenedModel, dtype: torch.dtype | None = None, granularity: int = 1, **fields: Any
) -> PlannedModel:
    """The Mixture of Experts of a family of this package that starts from a dense model.

    Args:
        opened: the dense model.
        dtype: type of the written weights; None keeps the source's.
        granularity: slices of each version of an FFN, an expert each.
        **fields: of the family's configuration.

    Raises:
        CheckpointError: no family starts from such a model, or tensors are missing, left over or misfitting.
        ConfigError: a field is not allowed.
    """
    family = family_of_dense(opened.model_type)
    if family is None:
        raise CheckpointError(
            f"{opened.name} holds a model of type {opened.model_type!r}; families of this package start from dense "
            f"{', '.join(dense_model_types())}"
        )
    if opened.source.gguf_file is not None:
        raise CheckpointError(
            f"{opened.name} is a GGUF file of type {opened.model_type!r}; save it as safetensors first: "
            "AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).save_pretrained(other_folder)"
        )
    config = family.config.from_pretrained(opened.folder, **fields)
    if granularity != 1:
        require_granularity(granularity, config.ffn_width, config.num_experts, config.num_experts_per_tok)
        fields["moe_intermediate_size"] = config.ffn_width // granularity
        config = family.config.from_pretrained(opened.folder, **fields)
    config.architectures = [family.causal_lm.__name__]
    formats = family.model.dense_formats
    dense_format = next((known for known in formats if known.recognises(opened.slices)), None)
    if dense_format is None:
        raise CheckpointError(
            f"{opened.name} holds {len(opened.slices)} tensors such as {min(opened.slices, default='none')!r}, which "
            f"are not those of a {' or a '.join(known.name for known in formats)}; its config.json says that it is one"
        )
    state = fitting_state(dense_format, opened.slices, opened.weights_file, config, family.model, dtype=dtype)
    # What the loader keeps in float32 in a model of half precision is written so, too.
    for name, value in state.items():
        value.in_float32 = any(part in name for part in IN_FLOAT32)
    info = get_moe_model_info(config)
    counts = ParameterCounts(info["total_params"], info["active_params"], info["dense_twin_params"])
    # Fresh FFNs add nothing, whatever their experts weigh.
    changes = why_logits_change(config) if dense_format.has_ffn else []
    if dense_format.has_ffn and config.sparse_layers and config.expert_init != "copy":
        changes.append(f'expert_init="{config.expert_init}" changes the experts; "copy" keeps the logits')
    return PlannedModel(config, state, config, counts, changes)
