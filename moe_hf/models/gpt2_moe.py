"""The GPT-2 family: attention, learned positions, and experts in place of some FFNs."""

from transformers import GenerationMixin

from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class GPT2WithMoEModel(MoEDecoderModel):
    """GPT-2 with experts, without a head."""

    config: GPT2WithMoEConfig
    dense_formats = formats_of(GPT2WithMoEConfig)


class GPT2WithMoE(MoEForCausalLM, GenerationMixin):
    """GPT-2 with experts that predicts the next token."""

    model_class = GPT2WithMoEModel


class GPT2WithMoEForSequenceClassification(MoEForSequenceClassification):
    """GPT-2 with experts that labels a sequence."""

    model_class = GPT2WithMoEModel
