"""Makes the families known to transformers' Auto classes."""

from typing import Any, NamedTuple

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.decoder import MoEPreTrainedModel
from moe_hf.models.gpt2_moe import GPT2WithMoE, GPT2WithMoEForSequenceClassification
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification
from moe_hf.models.hyena_moe import HyenaWithMoE, HyenaWithMoEForSequenceClassification
from moe_hf.models.mamba_moe import MambaWithMoE, MambaWithMoEForSequenceClassification
from moe_hf.models.megabyte.model import MegaByteWithMoE, MegaByteWithMoEForSequenceClassification
from moe_hf.models.retnet_moe import RetNetWithMoE, RetNetWithMoEForSequenceClassification
from moe_hf.models.rwkv_moe import RWKVWithMoE, RWKVWithMoEForSequenceClassification


class Family(NamedTuple):
    """The classes of one model family; the heads know the others."""

    causal_lm: type[MoEForCausalLM]
    sequence_classification: type[MoEForSequenceClassification]

    @property
    def model(self) -> type[MoEPreTrainedModel]:
        """The model under the heads."""
        return self.causal_lm.model_class

    @property
    def config(self) -> type[MoEDecoderConfig]:
        """The configuration of all of them."""
        config: Any = self.model.config_class
        return config


_FAMILIES = (
    Family(GPT2WithMoE, GPT2WithMoEForSequenceClassification),
    Family(MambaWithMoE, MambaWithMoEForSequenceClassification),
    Family(MegaByteWithMoE, MegaByteWithMoEForSequenceClassification),
    Family(RetNetWithMoE, RetNetWithMoEForSequenceClassification),
    Family(HyenaWithMoE, HyenaWithMoEForSequenceClassification),
    Family(RWKVWithMoE, RWKVWithMoEForSequenceClassification),
)
FAMILIES: dict[str, Family] = {family.config.model_type: family for family in _FAMILIES}
"""By the `model_type` of their configurations."""


def register_families() -> None:
    """Register every family; `import moe_hf` does it once, and doing it again changes nothing."""
    for model_type, family in FAMILIES.items():
        AutoConfig.register(model_type, family.config, exist_ok=True)
        AutoModel.register(family.config, family.model, exist_ok=True)
        AutoModelForCausalLM.register(family.config, family.causal_lm, exist_ok=True)
        # By this table of names the Trainer knows a model whose labels its label smoothing must shift.
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] = family.causal_lm.__name__
        AutoModelForSequenceClassification.register(family.config, family.sequence_classification, exist_ok=True)


def family_of(source: str) -> Family:
    """The family of a model folder or Hub id: its own, or the one that can start from it.

    Raises:
        CheckpointError: it has no `config.json`, or is of a type that no family reads.
        OSError: it cannot be found.
    """
    try:
        found = PreTrainedConfig.get_config_dict(source)[0]
    except (TypeError, RecursionError) as error:
        raise CheckpointError(f"the config.json of {source} is no JSON object ({error}); download it again") from error
    if not found:
        raise CheckpointError(f"{source} has no config.json; name a folder that has one")
    # Old files of GPT-2 do not name their type.
    model_type = str(found.get("model_type", "gpt2"))
    family = FAMILIES.get(model_type) or family_of_dense(model_type)
    if family is None:
        raise CheckpointError(
            f"{source} holds a model of type {model_type!r}; known are {', '.join([*FAMILIES, *dense_model_types()])}"
        )
    return family


def family_of_dense(model_type: str) -> Family | None:
    """The family that can start from dense models of this type, as their `config.json` names it; None if none can."""
    return next((family for family in FAMILIES.values() if model_type in family.config.dense_model_types), None)


def dense_model_types() -> list[str]:
    """The types of dense models that some family can start from."""
    return [name for family in FAMILIES.values() for name in family.config.dense_model_types]
