"""The Hyena family: long convolutions between gates, and experts in place of some FFNs."""

from transformers import GenerationMixin

from moe_hf.config.hyena_moe import HyenaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class HyenaWithMoEModel(MoEDecoderModel):
    """Hyena with experts, without a head."""

    config: HyenaWithMoEConfig
    dense_formats = formats_of(HyenaWithMoEConfig)


class HyenaWithMoE(MoEForCausalLM, GenerationMixin):
    """Hyena with experts that predicts the next token."""

    model_class = HyenaWithMoEModel


class HyenaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Hyena with experts that labels a sequence."""

    model_class = HyenaWithMoEModel
