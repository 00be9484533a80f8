"""The RWKV family: time mixing of version 7 or 4, and experts behind a shared token shift."""

from transformers import GenerationMixin

from moe_hf.config.rwkv_moe import RWKVWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class RWKVWithMoEModel(MoEDecoderModel):
    """RWKV with experts, without a head."""

    config: RWKVWithMoEConfig
    dense_formats = formats_of(RWKVWithMoEConfig)


class RWKVWithMoE(MoEForCausalLM, GenerationMixin):
    """RWKV with experts that predicts the next token."""

    model_class = RWKVWithMoEModel


class RWKVWithMoEForSequenceClassification(MoEForSequenceClassification):
    """RWKV with experts that labels a sequence."""

    model_class = RWKVWithMoEModel
