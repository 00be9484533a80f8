"""The Llama family: grouped queries, rotary positions and gated FFNs, and experts in place of some of these."""

from transformers import GenerationMixin

from moe_hf.config.llama_moe import LlamaWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class LlamaWithMoEModel(MoEDecoderModel):
    """Llama with experts, without a head."""

    config: LlamaWithMoEConfig
    dense_formats = formats_of(LlamaWithMoEConfig)


class LlamaWithMoE(MoEForCausalLM, GenerationMixin):
    """Llama with experts that predicts the next token."""

    model_class = LlamaWithMoEModel


class LlamaWithMoEForSequenceClassification(MoEForSequenceClassification):
    """Llama with experts that labels a sequence."""

    model_class = LlamaWithMoEModel
