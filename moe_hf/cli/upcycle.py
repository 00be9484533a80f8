"""`moe-hf upcycle`: turns a dense model's directory into a Mixture-of-Experts directory."""

import argparse
import shlex

import torch

from moe_hf.base.model_source import folder_or_hub_id
from moe_hf.cli.overrides import add_config_flags, given_config_fields, layer_pattern
from moe_hf.cli.screen import Screen
from moe_hf.models.auto import dense_model_types, family_of
from moe_hf.models.dense.directory import upcycle_directory
from moe_hf.models.info import get_moe_model_info

FLAGS = (
    "num_experts num_experts_per_tok mlp_layer_types shared_expert_intermediate_size norm_topk_prob "
    "router_type router_num_hash_layers router_capacity_factor router_eval_capacity_factor router_balance_loss "
    "router_aux_loss_coef router_z_loss_coef router_jitter_noise shared_expert_gate expert_init expert_init_noise "
    "expert_init_drop_ratio expert_init_seed router_init"
).split()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str] | None = None, prog: str = "moe-hf upcycle") -> int:
    """Write the directory; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Build a Mixture of Experts from a dense model: every expert starts from its layer's FFN, or, "
        f"where the model has none, with output 0. Dense models: {', '.join(dense_model_types())}.",
    )
    parser.add_argument("source", metavar="SRC", help="folder or Hub id of a dense model (safetensors)")
    parser.add_argument("destination", metavar="DST", help="folder to create")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="type of the written weights (default: as in SRC)")
    parser.add_argument("--max_shard_size", default="5GB", help="largest weights file (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in DST when the new one is complete"
    )
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    fields = given_config_fields(args, FLAGS)
    # A pattern needs the number of layers, which the source's configuration tells.
    if "mlp_layer_types" in fields:
        source = folder_or_hub_id(args.source)
        layers = family_of(source).config.from_pretrained(source).num_hidden_layers
        fields["mlp_layer_types"] = layer_pattern(fields["mlp_layer_types"], layers)

    # Progress goes to stderr: stdout holds the result alone.
    console = Screen(stderr=True, soft_wrap=True)
    with console.status("reading the checkpoint") as status:
        report = upcycle_directory(
            args.source,
            args.destination,
            dtype=DTYPES.get(args.dtype),
            max_shard_size=args.max_shard_size,
            overwrite=args.overwrite,
            on_shard=lambda done, total: status.update(f"wrote weights file {done} of {total}"),
            **fields,
        )
    info = get_moe_model_info(report.config)
    folder = shlex.quote(str(report.folder))
    Screen(soft_wrap=True).print(
        f"{report.folder}: {info['total_params_m']:.1f}M parameters, {info['active_params_m']:.1f}M active per token "
        f"(dense: {info['dense_twin_params_m']:.1f}M)\n"
        f"on disk:      {report.weight_bytes / 1e9:.2f} GB in {report.num_shards} file(s)\n"
        f"carried over: {', '.join(report.carried) or 'nothing'}\n"
        f"train it:     moe-hf train --model {folder} --data <your text>\n"
        f"talk to it:   moe-hf chat --model {folder}"
    )
    return 0
