"""What `import moe_hf` stands for: the public names that need torch, and all of it made known to transformers.

`moe_hf/__init__.py` loads this together with transformers, or for the first of these names.
"""

from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.hyena_moe import HyenaWithMoEConfig
from moe_hf.config.llama_moe import LlamaWithMoEConfig
from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.config.presets import create_moe_config
from moe_hf.config.retnet_moe import RetNetWithMoEConfig
from moe_hf.config.rwkv_moe import RWKVWithMoEConfig
from moe_hf.layers.attention.sparse import register_sparse_attention
from moe_hf.layers.experts.backends import register_experts_backends
from moe_hf.layers.ffn.routers import HashRouter, SwitchRouter
from moe_hf.layers.ffn.standalone import MoE
from moe_hf.layers.hyena_filter import HyenaFilter
from moe_hf.layers.patching import MegaBytePatching
from moe_hf.models.auto import register_families
from moe_hf.models.cards.pushed import put_card
from moe_hf.models.gpt2_moe import GPT2WithMoE, GPT2WithMoEForSequenceClassification, GPT2WithMoEModel
from moe_hf.models.hub_card import PushesCard
from moe_hf.models.hyena_moe import HyenaWithMoE, HyenaWithMoEForSequenceClassification, HyenaWithMoEModel
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.llama_moe import LlamaWithMoE, LlamaWithMoEForSequenceClassification, LlamaWithMoEModel
from moe_hf.models.mamba_moe import MambaWithMoE, MambaWithMoEForSequenceClassification, MambaWithMoEModel
from moe_hf.models.megabyte.model import MegaByteWithMoE, MegaByteWithMoEForSequenceClassification, MegaByteWithMoEModel
from moe_hf.models.retnet_moe import RetNetWithMoE, RetNetWithMoEForSequenceClassification, RetNetWithMoEModel
from moe_hf.models.rwkv_moe import RWKVWithMoE, RWKVWithMoEForSequenceClassification, RWKVWithMoEModel
from moe_hf.ops.attention.topk_attention import topk_sparse_attention
from moe_hf.ops.routing.load_statistics import expert_utilization, load_balance_std
from moe_hf.quantization.quantization_config import MoEQuantizationConfig
from moe_hf.quantization.quantizer import register_quantizer

register_families()
register_experts_backends()
register_quantizer()
register_sparse_attention()
PushesCard.put_card = staticmethod(put_card)
