"""`moe-hf export`: writes a model in the form that another program reads."""

import argparse
import shlex

from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.export.architectures import ARCHITECTURES
from moe_hf.export.gguf_file import TYPES, ExportReport, export_gguf
from moe_hf.models.dense.checkpoint_files import listed


def main(argv: list[str] | None = None, prog: str = "moe-hf export") -> int:
    """Write the file; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a model of transformers' own as a GGUF file, which llama.cpp and what is built on it read. "
        f"It takes the model types {', '.join(ARCHITECTURES)}.",
    )
    parser.add_argument("source", metavar="MODEL", help="folder or Hub id of the model")
    parser.add_argument("--gguf", required=True, metavar="FILE", help="file to write; its folder must exist")
    parser.add_argument(
        "--quantize",
        choices=TYPES,
        help="type of the matrices (default: as in MODEL); vectors and routers stay in f32, and with q8_0 matrices "
        "whose rows are no multiple of 32 in f16",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE when the new one is complete")
    args = parser.parse_args(argv)

    # Progress goes to stderr: stdout holds the result alone.
    console = Screen(stderr=True, soft_wrap=True)
    with console.status("reading the checkpoint") as status:
        report = export_gguf(
            args.source,
            args.gguf,
            args.quantize,
            args.overwrite,
            on_tensor=lambda done, total: status.update(f"wrote tensor {done} of {total}"),
        )
    Screen(soft_wrap=True).print(_summary(report))
    return 0


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
