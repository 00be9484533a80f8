"""`moe-hf export`: writes a model in the form that another program reads."""

import argparse
import shlex

from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.export.architectures import ARCHITECTURES
from moe_hf.export.gguf_file import TYPES, ExportReport, export_gguf
from moe_hf.export.self_contained import SelfContainedReport, export_self_contained
from moe_hf.models.auto import FAMILIES
from moe_hf.models.dense.checkpoint_files import listed


def main(argv: list[str] | None = None, prog: str = "moe-hf export") -> int:
    """Write the folder or the file; returns the exit code."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    if (args.destination is None) == (args.gguf is None):
        parser.error("name one of DIR and --gguf FILE: the folder or the file to write")
    if args.quantize is not None and args.gguf is None:
        parser.error("--quantize goes with --gguf; a folder holds the weights as they are in MODEL")

    # Progress goes to stderr: stdout holds the result alone.
    console = Screen(stderr=True, soft_wrap=True)
    with console.status("reading the checkpoint") as status:
        if args.gguf is None:
            summary = _folder_summary(
                export_self_contained(
                    args.source,
                    args.destination,
                    args.overwrite,
                    on_progress=lambda done, total: status.update(f"wrote weights file {done} of {total}"),
                )
            )
        else:
            summary = _summary(
                export_gguf(
                    args.source,
                    args.gguf,
                    args.quantize,
                    args.overwrite,
                    on_tensor=lambda done, total: status.update(f"wrote tensor {done} of {total}"),
                )
            )
    Screen(soft_wrap=True).print(summary)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a model of this package with its code, as a folder that loads without the package "
        f"({', '.join(FAMILIES)}); or a model of transformers' own as a GGUF file, which llama.cpp and what is built "
        f"on it read ({', '.join(ARCHITECTURES)}).",
    )
    parser.add_argument("source", metavar="MODEL", help="folder or Hub id of the model")
    parser.add_argument("destination", metavar="DIR", nargs="?", help="folder to create")
    parser.add_argument("--gguf", metavar="FILE", help="file to write in place of a folder; its folder must exist")
    parser.add_argument(
        "--quantize",
        choices=TYPES,
        help="with --gguf: type of the matrices (default: as in MODEL); vectors and routers stay in f32, and with q8_0 "
        "matrices whose rows are no multiple of 32 in f16",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR or FILE when the new one is complete")
    return parser


def _folder_summary(report: SelfContainedReport) -> str:
    entry, *others = report.code_files
    lines = [
        f"{report.folder}: {report.model_type}, {in_bytes(report.weight_bytes)} of weights",
        f"code:         {entry} and {len(others)} files that it imports, {report.code_lines} lines",
        f"carried over: {', '.join(report.carried) or 'nothing'}",
        *(f"notice:       {notice}" for notice in report.notices),
        f"load it:      {report.auto_class}.from_pretrained({str(report.folder)!r}, trust_remote_code=True)",
    ]
    return "\n".join(lines)


def _summary(report: ExportReport) -> str:
    types = ", ".join(f"{count} {kind.lower()}" for kind, count in sorted(report.types.items()))
    lines = [
        f"{report.path}: {report.parameters / 1e6:.1f}M parameters, {in_bytes(report.size)}, for llama.cpp's "
        f"{report.architecture}",
        f"tensors:   {types}",
    ]
    if report.kept:
        lines.append(f"not q8_0:  {len(report.kept)} whose rows are no multiple of 32, in f16: {listed(report.kept)}")
    if report.tokenizer is not None:
        template = "a chat template" if report.tokenizer.has_template else "no chat template"
        lines.append(f"tokenizer: {report.tokenizer.tokens} tokens, split as {report.tokenizer.split}, {template}")
    lines += [f"notice:    {notice}" for notice in report.notices]
    if report.tokenizer is not None:
        lines.append(f"run it:    llama-cli -m {shlex.quote(str(report.path))}")
    return "\n".join(lines)
