"""Turns a dense GPT-2's state dict into that of a Mixture of Experts, lazily: nothing is read before it is needed.

Komatsuzaki et al. 2023, Sparse Upcycling: every expert starts as the dense FFN, so the function is kept exactly as
long as the weights of a token's experts sum to 1.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from moe_hf.base.errors import CheckpointError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter, Router, SigmoidBiasRouter, SwitchRouter
from moe_hf.models.expert_init import ExpertPart, ExpertRecipe, StackedExperts, seed_of
from moe_hf.models.lazy_tensors import Copied, Drawn, Held, LazyTensor, Sliced

logger = logging.get_logger(__name__)

_ANY_ATTENTION = re.compile(r"(^|\.)h\.\d+\.attn\.c_attn\.weight$")
_CONVERT = "if you trust it, load it with AutoModelForCausalLM and save_pretrained it, which writes safetensors"


def open_slices(files: list[str]) -> dict[str, Any]:
    """Unread slices of all tensors in the safetensors files, by name.

    Raises:
        CheckpointError: a file is no safetensors file, or is cut off.
    """
    slices: dict[str, Any] = {}
    for file in files:
        if not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{Path(file).name} is not a safetensors file; pickled checkpoints can run code and are not read: "
                f"{_CONVERT}"
            )
        try:
            opened = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} can't be read as safetensors ({error}); it is incomplete or damaged: download it again"
            ) from error
        slices.update({name: opened.get_slice(name) for name in opened.keys()})
    return slices


def is_dense_gpt2(names: Mapping[str, Any] | list[str]) -> bool:
    """Whether tensor names are those of a dense GPT-2, with or without the "transformer." prefix.

    >>> is_dense_gpt2(["transformer.h.0.attn.c_attn.weight"]), is_dense_gpt2(["model.norm.weight"])
    (True, False)
    """
    return any(_ANY_ATTENTION.search(name) for name in names)


def is_head_tied(weights_file: str) -> bool:
    """Whether the `config.json` beside a dense GPT-2's weights says that its head is its embedding's matrix."""
    path = Path(weights_file).parent / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("tie_word_embeddings", True)


def upcycled_state_dict(
    dense: Mapping[str, Any],
    config: MoEDecoderConfig,
    with_head: bool = True,
    head_was_tied: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, LazyTensor]:
    """The Mixture of Experts' state dict for a causal LM, each tensor computed from `dense` when it is read.

    Args:
        dense: name to unread slice of a dense GPT-2.
        config: the Mixture of Experts to build.
        with_head: whether the language-model head is needed; where it is tied to the embedding it is never stored.
        head_was_tied: whether the dense model's head is its embedding; a head that is untied here starts as its copy.
        dtype: type of the experts' stacks; None is that of the dense weights. The loader casts what is left.

    Raises:
        CheckpointError: tensors are missing or do not fit the configuration.
    """
    source = _DenseSource(dense, config)
    state: dict[str, LazyTensor] = {
        "model.embed_tokens.weight": source.sliced("wte.weight"),
        "model.embed_positions.weight": source.sliced("wpe.weight"),
        "model.norm.weight": source.sliced("ln_f.weight"),
        "model.norm.bias": source.sliced("ln_f.bias"),
    }
    for layer in range(config.num_hidden_layers):
        state |= {f"model.layers.{layer}.{name}": value for name, value in _layer(source, config, layer, dtype).items()}
    if with_head and not config.tie_word_embeddings:
        embedding = state["model.embed_tokens.weight"]
        state["lm_head.weight"] = Copied(embedding) if head_was_tied else source.sliced("lm_head.weight")
    if "score.weight" in dense:
        state["score.weight"] = source.sliced("score.weight")
    source.raise_if_incomplete()
    reasons = why_logits_change(config)
    if reasons:
        logger.warning_once(
            "the upcycled model will not give the dense model's logits at step 0, since the weights of a token's "
            f"experts do not sum to 1: {'; '.join(reasons)}"
        )
    return state


def why_logits_change(config: MoEDecoderConfig) -> list[str]:
    """Why the weights of a token's experts do not sum to 1, and what to change; empty where they do.

    Experts that are copies keep the dense model's logits exactly where it is empty.
    """
    reasons = []
    for kind in dict.fromkeys(config.router_of_sparse_layer):
        router = ROUTERS[kind]
        # Softmax over all experts sums to 1 by itself.
        whole = router.score == "softmax" and config.num_experts_per_tok == config.num_experts
        if issubclass(router, SwitchRouter):
            if not whole:
                reasons.append('router_type="switch" weighs its expert by a probability; "top_k" keeps the logits')
        elif issubclass(router, LearnedRouter) and not config.norm_topk_prob and not whole:
            reasons.append("norm_topk_prob=False leaves the weights as they are; True keeps the logits")
        if issubclass(router, SigmoidBiasRouter) and config.router_scale != 1:
            reasons.append(f"router_scale={config.router_scale} multiplies the weights; 1.0 keeps the logits")
    return reasons


class _DenseSource:
    """Looks up dense tensors under either prefix and collects everything that is wrong before anything is built."""

    def __init__(self, dense: Mapping[str, Any], config: MoEDecoderConfig) -> None:
        self._dense = dense
        self._missing: list[str] = []
        self._misfits: list[str] = []
        width, inner = config.hidden_size, config.intermediate_size
        self._shapes = {
            "wte.weight": (config.vocab_size, width),
            "lm_head.weight": (config.vocab_size, width),
            "wpe.weight": (config.max_position_embeddings, width),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_proj.weight": (width, width),
            "mlp.c_fc.weight": (width, inner),
            "mlp.c_proj.weight": (inner, width),
        }
        layers = {int(match[1]) for name in dense if (match := re.search(r"(?:^|\.)h\.(\d+)\.", name))}
        if len(layers) > config.num_hidden_layers:
            self._misfits.append(f"{len(layers)} layers, but num_hidden_layers={config.num_hidden_layers}")
        if config.position_embedding_type != "learned":
            self._misfits.append("learned positions, but position_embedding_type is 'rotary'")
        if config.sparse_layers and config.moe_intermediate_size != inner:
            self._misfits.append(f"FFNs of width {inner}, but moe_intermediate_size={config.moe_intermediate_size}")

    def sliced(self, name: str, transpose: bool = False, part: tuple[int, int] | None = None) -> Sliced:
        """The stored tensor, or the i-th of n equal column blocks of it; a stand-in when it is missing."""
        found = self._dense.get(f"transformer.{name}", self._dense.get(name))
        if found is None:
            self._missing.append(name)
            return Sliced(_Absent())
        shape = tuple(found.get_shape())
        expected = self._shapes.get(name.split(".", 2)[-1] if name.startswith("h.") else name)
        if expected is not None and shape != expected:
            self._misfits.append(f"{name} of shape {shape}, but the configuration asks for {expected}")
            return Sliced(_Absent())
        columns = None
        if part is not None:
            index, count = part
            size = shape[-1] // count
            columns = slice(index * size, (index + 1) * size)
        return Sliced(found, transpose, columns)

    def raise_if_incomplete(self) -> None:
        """Report everything that was found wrong, in one error."""
        if self._missing:
            # Queries, keys and values ask for the same tensor.
            missing = list(dict.fromkeys(self._missing))
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CheckpointError(
                f"the dense GPT-2 checkpoint has {len(self._dense)} tensors but lacks {len(missing)} that are "
                f"needed: {shown}; it is incomplete or not a GPT-2"
            )
        if self._misfits:
            # Queries, keys and values find the same misfit.
            misfits = list(dict.fromkeys(self._misfits))
            shown = "; ".join(misfits[:4]) + (f"; and {len(misfits) - 4} more" if len(misfits) > 4 else "")
            raise CheckpointError(
                f"the dense GPT-2 checkpoint has {shown}; drop the override, or choose another checkpoint"
            )


class _Absent:
    """Stands in for a missing slice until all that is missing can be reported at once."""

    def get_shape(self) -> list[int]:
        return [0]

    def get_dtype(self) -> str:
        return "F32"


def _layer(
    source: _DenseSource, config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    dense = f"h.{layer}"
    state: dict[str, LazyTensor] = {}
    for ours, theirs in (("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2")):
        state[f"{ours}.weight"] = source.sliced(f"{dense}.{theirs}.weight")
        state[f"{ours}.bias"] = source.sliced(f"{dense}.{theirs}.bias")
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        state[f"mixer.{name}.weight"] = source.sliced(f"{dense}.attn.c_attn.weight", True, (index, 3))
        state[f"mixer.{name}.bias"] = source.sliced(f"{dense}.attn.c_attn.bias", False, (index, 3))
    state["mixer.o_proj.weight"] = source.sliced(f"{dense}.attn.c_proj.weight", True)
    state["mixer.o_proj.bias"] = source.sliced(f"{dense}.attn.c_proj.bias")
    if config.mixer_short_conv:
        state["mixer.short_conv.weight"] = Drawn((3 * config.hidden_size, config.mixer_short_conv), 0.0, 0)

    ffn = {
        "up_proj.weight": source.sliced(f"{dense}.mlp.c_fc.weight", True),
        "up_proj.bias": source.sliced(f"{dense}.mlp.c_fc.bias"),
        "down_proj.weight": source.sliced(f"{dense}.mlp.c_proj.weight", True),
        "down_proj.bias": source.sliced(f"{dense}.mlp.c_proj.bias"),
    }
    if layer in config.sparse_layers:
        return state | _sparse_ffn(ffn, config, layer, dtype)
    return state | {f"mlp.{name}": value for name, value in ffn.items()}


def _sparse_ffn(
    ffn: dict[str, Sliced], config: MoEDecoderConfig, layer: int, dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    width, seed = config.hidden_size, config.expert_init_seed
    recipe = ExpertRecipe(config.expert_init, config.expert_init_noise, config.expert_init_drop_ratio, seed, dtype)
    unit_dims = {"up_proj.weight": 0, "up_proj.bias": 0, "down_proj.weight": 1, "down_proj.bias": None}
    state: dict[str, LazyTensor] = {}
    for name, unit_dim in unit_dims.items():
        ours = name.replace(".weight", "").replace(".bias", "_bias")
        part = ExpertPart(layer, name, unit_dim)
        state[f"mlp.experts.{ours}"] = StackedExperts(ffn[name], config.num_experts, part, recipe)
    router = ROUTERS[config.router_of_layer(layer)]
    if issubclass(router, LearnedRouter):
        router_std = config.initializer_range if config.router_init == "random" else 0.0
        state["mlp.gate.weight"] = Drawn((config.num_experts, width), router_std, seed_of(seed, layer, "gate"))
    state |= {f"mlp.gate.{name}": Held(buffer) for name, buffer in _fresh_states(router, config).items()}
    shared = config.shared_expert_intermediate_size
    if shared:
        # Its output starts at zero, so that the function is kept.
        up_seed = seed_of(seed, layer, "shared")
        state["mlp.shared_expert.up_proj.weight"] = Drawn((shared, width), config.initializer_range, up_seed)
        state["mlp.shared_expert.up_proj.bias"] = Drawn((shared,), 0.0, 0)
        state["mlp.shared_expert.down_proj.weight"] = Drawn((width, shared), 0.0, 0)
        state["mlp.shared_expert.down_proj.bias"] = Drawn((width,), 0.0, 0)
        if config.shared_expert_gate:
            state["mlp.shared_expert_gate.weight"] = Drawn((1, width), 0.0, 0)
    return state


def _fresh_states(router: type[Router], config: MoEDecoderConfig) -> dict[str, torch.Tensor]:
    # The router's weight is drawn on the way and thrown away: neither that nor a device that holds no values may show.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return dict(router.from_config(config).named_buffers())
