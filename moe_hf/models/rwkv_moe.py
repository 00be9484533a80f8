"""The RWKV family: time mixing of version 7 or 4, and experts behind a shared token shift."""

from typing import ClassVar

from moe_hf.config.rwkv_moe import RWKVWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel, MoEPreTrainedModel
from moe_hf.models.dense.formats import formats_of
from moe_hf.models.dense.source import DenseFormat
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification

# As in transformers: version 4 takes the exponential of these, and rates differ by less than half precision tells.
_IN_FLOAT32 = {*MoEPreTrainedModel._keep_in_fp32_modules_strict, "time_decay", "time_first"}


class RWKVWithMoEModel(MoEDecoderModel):
    """RWKV with experts, without a head."""

    _keep_in_fp32_modules_strict: ClassVar[set[str]] = _IN_FLOAT32
    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = formats_of(RWKVWithMoEConfig)


class RWKVWithMoE(MoEForCausalLM):
    """RWKV with experts that predicts the next token."""

    _keep_in_fp32_modules_strict: ClassVar[set[str]] = _IN_FLOAT32
    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = RWKVWithMoEModel


class RWKVWithMoEForSequenceClassification(MoEForSequenceClassification):
    """RWKV with experts that labels a sequence."""

    _keep_in_fp32_modules_strict: ClassVar[set[str]] = _IN_FLOAT32
    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = RWKVWithMoEModel
