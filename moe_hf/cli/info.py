"""`moe-hf info`: prints what a size or a saved model weighs and costs."""

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from moe_hf.base.errors import ConfigError, reading
from moe_hf.base.model_source import PACKAGED_MODELS, find_model
from moe_hf.cli.overrides import add_config_flags, given_config_fields, layer_pattern
from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.config.presets import PRESETS, create_moe_config
from moe_hf.models.auto import FAMILIES, family_of, model_type_of
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.upcycling.opened import other_config
from moe_hf.quantization.quantization_config import METHOD

FLAGS = (
    "num_experts num_experts_per_tok hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "moe_intermediate_size shared_expert_intermediate_size max_position_embeddings vocab_size tie_word_embeddings "
    "mlp_layer_types router_type router_num_hash_layers shared_expert_gate"
).split()


_OF_EXPERTS = (
    "active_params_m active_fraction active_non_embedding_params_m dense_twin_params_m expert_utilization experts "
    "moe_layers"
).split()


def main(argv: list[str] | None = None, prog: str = "moe-hf info") -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Parameters, FLOPs and bytes of a model.")
    parser.add_argument("model", help=f"a size ({', '.join(PRESETS)}), a model folder, or a Hub id")
    parser.add_argument(
        "--architecture",
        default="gpt2",
        metavar="NAME",
        help="of a size: gpt2 (default), llama, retnet, mamba, hyena, rwkv, megabyte, or a pattern such as "
        "mamba*3,attention",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    fields = given_config_fields(args, FLAGS)
    # A pattern needs the number of layers, which the configuration without it tells.
    pattern = fields.pop("mlp_layer_types", None)
    config = _config(args.model, args.architecture, fields)
    if pattern is not None:
        fields["mlp_layer_types"] = layer_pattern(pattern, config.num_hidden_layers)
        config = _config(args.model, args.architecture, fields)

    dense_type = _dense_type(args.model)
    # Asked about the dense model itself, not about what can be made of it.
    if dense_type is not None and not fields:
        config.make_dense()
    console = Screen(soft_wrap=True)
    info = get_moe_model_info(config)
    if args.json:
        console.print_json(data=info)
        return 0
    size = f"{info['total_params_m']:.1f}M parameters"
    if info["moe_layers"]:
        made_of = "" if dense_type is None else f"as a Mixture of Experts made of the dense {dense_type}, "
        table = Table(title=f"{args.model}: {made_of}{size}, {info['active_params_m']:.1f}M active")
    else:
        table = Table(title=f"{args.model}: a dense {dense_type or 'model'}, without experts: {size}")
    table.add_column("what", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning", style="dim")
    for what, value, meaning in _rows(config, info):
        if info["moe_layers"] or what not in _OF_EXPERTS:
            table.add_row(what, value, meaning)
    console.print(table)
    return 0


def _config(model: str, architecture: str, fields: dict) -> Any:
    if model in PRESETS or not (Path(model).exists() or "/" in model or model in PACKAGED_MODELS):
        return create_moe_config(model, architecture=architecture, **fields)
    source = find_model(model)
    model_type = model_type_of(source)
    family = family_of(model_type)
    if family is not None:
        with reading(f"the configuration of {model}"):
            return family.config.from_pretrained(source.folder, **fields)
    if fields:
        name, value = next(iter(fields.items()))
        raise ConfigError(f"{name}={value!r} can't be chosen for {model}, which is a {model_type} already")
    return other_config(source)


def _dense_type(model: str) -> str | None:
    """The type of a dense model that a family of this package reads; None of all others."""
    if model in PRESETS:
        return None
    name = model_type_of(find_model(model))
    return None if name in FAMILIES or family_of(name) is None else name


def _rows(config: Any, info: dict) -> list[tuple[str, str, str]]:
    return [
        ("total_params_m", f"{info['total_params_m']:.1f}", "all weights, million; all of them must be resident"),
        ("active_params_m", f"{info['active_params_m']:.1f}", "weights that one token meets"),
        ("active_fraction", f"{info['active_fraction']:.1%}", "active / total parameters"),
        ("active_non_embedding_params_m", f"{info['active_non_embedding_params_m']:.1f}", "without the embeddings"),
        ("embedding_params_m", f"{info['embedding_params_m']:.1f}", "token and position embeddings"),
        ("dense_twin_params_m", f"{info['dense_twin_params_m']:.1f}", "the same model with every layer dense"),
        ("expert_utilization", info["expert_utilization"], "share of a sparse layer's EXPERTS per token"),
        ("experts", f"{info['num_experts']}, {info['num_experts_per_tok']} per token", "of each sparse layer"),
        ("moe_layers", str(info["moe_layers"]), "sparse layers"),
        ("dense_layers", str(info["dense_layers"]), ""),
        (
            "width x layers x heads",
            f"{config.hidden_size} x {config.num_hidden_layers} x {config.num_attention_heads}",
            "",
        ),
        ("context_length", str(info["context_length"]), "tokens"),
        ("flops_per_token", f"{info['flops_per_token'] / 1e9:.2f}G", "forward, at full context"),
        *_sizes(config, info),
    ]


def _sizes(config: Any, info: dict) -> list[tuple[str, str, str]]:
    weights = in_bytes(info["weight_bytes"])
    stored = _stored(config)
    if stored:
        # It can't be trained as it is.
        return [*stored, ("weight_bytes", weights, "if it were float32")]
    state = in_bytes(info["train_state_bytes"])
    return [
        ("weight_bytes", weights, "float32"),
        ("train_state_bytes", state, "weights, gradients, AdamW moments; float32"),
    ]


def _stored(config: Any) -> list[tuple[str, str, str]]:
    """How a quantised model holds its experts; nothing of others."""
    said = getattr(config, "quantization_config", None)
    if not isinstance(said, dict) or said.get("quant_method") != METHOD:
        return []
    grouped = f", groups of {said['group_size']}" if said.get("group_size") else ""
    return [("experts_stored_in", f"{said.get('bits')} bits{grouped}", "all else as floats")]
