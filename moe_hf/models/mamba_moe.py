"""The Mamba family: state space mixers, and experts behind or between them."""

from typing import ClassVar

from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.dense.source import DenseFormat
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class MambaWithMoEModel(MoEDecoderModel):
    """Mamba with experts, without a head."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = formats_of(MambaWithMoEConfig)


class MambaWithMoE(MoEForCausalLM):
    """Mamba with experts that predicts the next token."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = MambaWithMoEModel


class MambaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Mamba with experts that labels a sequence."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = MambaWithMoEModel
