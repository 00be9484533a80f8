"""`moe-hf upcycle`: turns a dense model's directory into a Mixture-of-Experts directory."""

import argparse
import shlex
from functools import partial

import torch
from transformers import AutoConfig

from moe_hf.base.model_source import PACKAGED_MODELS, ModelSource, find_model
from moe_hf.cli.overrides import add_config_flags, given_config_fields, layer_pattern
from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.models.auto import dense_model_types
from moe_hf.models.upcycling.directory import TARGETS, upcycle_directory
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS

FLAGS = (
    "num_experts num_experts_per_tok mlp_layer_types shared_expert_intermediate_size norm_topk_prob "
    "router_type router_num_hash_layers router_capacity_factor router_eval_capacity_factor router_balance_loss "
    "router_aux_loss_coef router_z_loss_coef router_jitter_noise shared_expert_gate expert_init expert_init_noise "
    "expert_init_drop_ratio expert_init_seed router_init"
).split()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str] | None = None, prog: str = "moe-hf upcycle") -> int:
    """Write the directory; returns the exit code."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    given = [args.busiest is not None, bool(args.data)]
    if any(given) and not (all(given) and args.target == "dense"):
        parser.error("--busiest K, --data FILES and --target dense go together")
    if args.busiest is not None and args.busiest < 1:
        parser.error(f"--busiest must be 1 or more, got {args.busiest}")
    fields = given_config_fields(args, FLAGS)
    # A pattern needs the number of layers, which the source's configuration tells.
    if "mlp_layer_types" in fields:
        source = find_model(args.source, args.gguf_file)
        fields["mlp_layer_types"] = layer_pattern(fields["mlp_layer_types"], _num_layers(source))

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
            target=args.target,
            gguf_file=args.gguf_file,
            granularity=args.granularity,
            branches=args.branches,
            kept_experts=partial(_busiest, args.source, args.busiest, args.data) if args.data else None,
            **fields,
        )
    counts = report.counts
    folder = shlex.quote(str(report.folder))
    Screen(soft_wrap=True).print(
        f"{report.folder}: {counts.total / 1e6:.1f}M parameters, {counts.active / 1e6:.1f}M active per token "
        f"(from {counts.source / 1e6:.1f}M)\n"
        f"on disk:      {in_bytes(report.weight_bytes)} in {report.num_shards} file(s)\n"
        f"carried over: {', '.join(report.carried) or 'nothing'}\n"
        f"train it:     moe-hf train --model {folder} --data <your text>\n"
        f"talk to it:   moe-hf chat --model {folder}"
    )
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Build a Mixture of Experts from a dense model: every expert starts from its layer's FFN, or, "
        f"where the model has none, with output 0. Of dense {', '.join(NATIVE_FORMATS)} it becomes a class that "
        f"transformers has itself; of {', '.join(dense_model_types())} a family of this package, where both can be "
        "if --target moe_hf asks for it.",
    )
    parser.add_argument(
        "source", metavar="SRC", help=f"folder, Hub id or .gguf file of a dense model, or {', '.join(PACKAGED_MODELS)}"
    )
    parser.add_argument("destination", metavar="DST", help="folder to create")
    parser.add_argument("--target", choices=sorted(TARGETS), help="whose class to build (default: native if it can be)")
    parser.add_argument("--gguf_file", metavar="NAME", help="the file of SRC that holds the weights")
    parser.add_argument(
        "--branches",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="more fine-tunes of the model in SRC: each gives experts as SRC does, all else is their mean",
    )
    parser.add_argument(
        "--granularity",
        type=int,
        default=1,
        metavar="G",
        help="cut each FFN into G slices, an expert each; num_experts and num_experts_per_tok count slices then",
    )
    parser.add_argument(
        "--busiest",
        type=int,
        metavar="K",
        help="with --target dense: keep the K experts of each layer that take most tokens of --data, side by side, "
        "instead of the mean of all",
    )
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME", help="what --busiest counts, as in moe-hf train"
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="type of the written weights (default: as in SRC)")
    parser.add_argument("--max_shard_size", default="5GB", help="largest weights file (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in DST when the new one is complete"
    )
    add_config_flags(parser, FLAGS)
    return parser


def _busiest(source: str, number: int, data: list[str]) -> dict[int, tuple[int, ...]]:
    # They bring torch's data loaders and `datasets`, which no other way through this command needs.
    import datasets

    from moe_hf.inference.busiest_experts import busiest_experts
    from moe_hf.inference.text_model import CausalTextModel
    from moe_hf.training.data.arguments import DataArguments
    from moe_hf.training.data.prepare import encoded_documents, split_rows

    datasets.disable_progress_bars()
    rows = split_rows(DataArguments(data=data, eval_fraction=0.0, num_conversations=1000), seed=0).train
    talker = CausalTextModel.load(source)
    return busiest_experts(talker, encoded_documents(rows, talker.tokenizer), number)


def _num_layers(source: ModelSource) -> int:
    config = AutoConfig.from_pretrained(source.folder, **source.options)
    return int(config.num_hidden_layers)
