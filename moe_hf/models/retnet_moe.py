"""The RetNet family: retention, gated FFNs behind RMSNorm, and experts in place of some FFNs."""

from transformers import GenerationMixin

from moe_hf.config.retnet_moe import RetNetWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class RetNetWithMoEModel(MoEDecoderModel):
    """RetNet with experts, without a head."""

    config: RetNetWithMoEConfig
    dense_formats = formats_of(RetNetWithMoEConfig)


class RetNetWithMoE(MoEForCausalLM, GenerationMixin):
    """RetNet with experts that predicts the next token."""

    model_class = RetNetWithMoEModel


class RetNetWithMoEForSequenceClassification(MoEForSequenceClassification):
    """RetNet with experts that labels a sequence."""

    model_class = RetNetWithMoEModel
