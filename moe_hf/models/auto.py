"""Makes the families known to transformers' Auto classes."""

from typing import Any, NamedTuple

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from moe_hf.base.errors import CheckpointError, reading
from moe_hf.base.model_source import ModelSource
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.reading import model_type_in
from moe_hf.models.decoder import MoEPreTrainedModel
from moe_hf.models.gpt2_moe import GPT2WithMoE, GPT2WithMoEForSequenceClassification
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification
from moe_hf.models.hyena_moe import HyenaWithMoE, HyenaWithMoEForSequenceClassification
from moe_hf.models.llama_moe import LlamaWithMoE, LlamaWithMoEForSequenceClassification
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
    Family(LlamaWithMoE, LlamaWithMoEForSequenceClassification),
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
        # A folder may leave the class of its tokenizer, and so its special tokens, to the type of its model.
        names = (TOKENIZER_MAPPING_NAMES.get(dense) for dense in family.config.dense_model_types)
        name = next((name for name in names if name), None)
        if name is not None:
            AutoTokenizer.register(family.config, tokenizer_class=getattr(transformers, name), exist_ok=True)


def model_type_of(source: ModelSource) -> str:
    """The `model_type` of a model's files.

    Raises:
        CheckpointError: it has no `config.json`, or one that is no JSON object.
        OSError: it cannot be found.
    """
    if source.gguf_file is not None:
        return str(AutoConfig.from_pretrained(source.folder, **source.options).model_type)
    with reading(f"the config.json of {source.folder}"):
        found = PreTrainedConfig.get_config_dict(source.folder)[0]
    if not found:
        raise CheckpointError(f"{source.folder} has no config.json; name a folder that has one")
    return model_type_in(found, source.folder)


def family_of(model_type: str) -> Family | None:
    """The family that reads models of this type unasked; None of all others.

    It is that of a Mixture of Experts of this package, or of dense models that are one as soon as they are read. Dense
    models like Llama stay what they are until someone asks: `family_of_dense`.
    """
    dense = family_of_dense(model_type)
    unasked = dense if dense is not None and dense.config.takes_dense_unasked else None
    return FAMILIES.get(model_type) or unasked


def family_of_dense(model_type: str) -> Family | None:
    """The family that can start from dense models of this type, as their `config.json` names it; None if none can."""
    return next((family for family in FAMILIES.values() if model_type in family.config.dense_model_types), None)


def dense_model_types() -> list[str]:
    """The types of dense models that some family can start from."""
    return [name for family in FAMILIES.values() for name in family.config.dense_model_types]
