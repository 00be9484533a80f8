"""The RWKV family: time mixing of version 7 or 4, and experts behind a shared token shift."""

from typing import ClassVar

from moe_hf.config.rwkv_moe import RWKVWithMoEConfig
from moe_hf.models.decoder import MoEDecoderModel
from moe_hf.models.dense_rwkv import DenseRWKV4
from moe_hf.models.dense_source import DenseFormat
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification


class RWKVWithMoEModel(MoEDecoderModel):
    """RWKV with experts, without a head."""

    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseRWKV4(),)


class RWKVWithMoE(MoEForCausalLM):
    """RWKV with experts that predicts the next token."""

    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = RWKVWithMoEModel
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseRWKV4(),)


class RWKVWithMoEForSequenceClassification(MoEForSequenceClassification):
    """RWKV with experts that labels a sequence."""

    config: RWKVWithMoEConfig
    config_class = RWKVWithMoEConfig
    model_class: ClassVar[type[MoEDecoderModel]] = RWKVWithMoEModel
    dense_formats: ClassVar[tuple[DenseFormat, ...]] = (DenseRWKV4(),)
