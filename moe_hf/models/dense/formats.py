"""The table of the dense architectures that a family can start from."""

from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.dense.format import DenseFormat
from moe_hf.models.dense.gpt2 import DenseGPT2
from moe_hf.models.dense.hyena import HyenaDNA
from moe_hf.models.dense.llama import DenseLlama, DenseOLMo2, DensePhi3
from moe_hf.models.dense.mamba import DenseMamba1, DenseMamba2
from moe_hf.models.dense.retnet import DenseRetNet
from moe_hf.models.dense.rwkv import DenseRWKV4
from moe_hf.models.dense.rwkv7 import DenseRWKV7

DENSE_FORMATS: Registry[DenseFormat] = Registry(
    "dense format",
    {
        "gpt2": DenseGPT2(),
        "llama": DenseLlama(),
        "olmo2": DenseOLMo2(),
        "phi3": DensePhi3(),
        "retnet": DenseRetNet(),
        "mamba": DenseMamba1(),
        "mamba2": DenseMamba2(),
        "hyenadna": HyenaDNA(),
        "rwkv4": DenseRWKV4(),
        "rwkv7": DenseRWKV7(),
    },
)


def formats_of(config_class: type[MoEDecoderConfig]) -> tuple[DenseFormat, ...]:
    """The formats that a family can start from: those of the dense models whose `config.json` it reads."""
    # Old files of GPT-2 name no type: within a family, a format is told by the names of its tensors.
    read = {*config_class.dense_model_types}
    return tuple(dense for dense in DENSE_FORMATS.values() if not read.isdisjoint(dense.model_types))
