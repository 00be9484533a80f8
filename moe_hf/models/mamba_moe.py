"""The Mamba family: state space mixers, and experts behind or between them."""

from typing import ClassVar

from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.mamba import DenseMamba1, DenseMamba2
from moe_hf.models.dense.source import DenseFormat
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class MambaWithMoEModel(MoEDecoderModel):
    """Mamba with experts, without a head."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseMamba1(), DenseMamba2())


class MambaWithMoE(MoEForCausalLM):
    """Mamba with experts that predicts the next token."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = MambaWithMoEModel
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseMamba1(), DenseMamba2())


class MambaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Mamba with experts that labels a sequence."""

    config: MambaWithMoEConfig
    config_class = MambaWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = MambaWithMoEModel
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseMamba1(), DenseMamba2())
