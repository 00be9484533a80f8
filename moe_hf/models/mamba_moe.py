"""The Mamba family: state space mixers, and experts behind or between them."""

from transformers import GenerationMixin

from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class MambaWithMoEModel(MoEDecoderModel):
    """Mamba with experts, without a head."""

    config: MambaWithMoEConfig
    dense_formats = formats_of(MambaWithMoEConfig)


class MambaWithMoE(MoEForCausalLM, GenerationMixin):
    """Mamba with experts that predicts the next token."""

    model_class = MambaWithMoEModel


class MambaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Mamba with experts that labels a sequence."""

    model_class = MambaWithMoEModel
