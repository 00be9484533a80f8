"""The Hyena family: long convolutions between gates, and experts in place of some FFNs."""

from typing import ClassVar

from moe_hf.config.hyena_moe import HyenaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.dense.source import DenseFormat
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class HyenaWithMoEModel(MoEDecoderModel):
    """Hyena with experts, without a head."""

    config: HyenaWithMoEConfig
    config_class = HyenaWithMoEConfig
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = formats_of(HyenaWithMoEConfig)


class HyenaWithMoE(MoEForCausalLM):
    """Hyena with experts that predicts the next token."""

    config: HyenaWithMoEConfig
    config_class = HyenaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = HyenaWithMoEModel


class HyenaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Hyena with experts that labels a sequence."""

    config: HyenaWithMoEConfig
    config_class = HyenaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = HyenaWithMoEModel
