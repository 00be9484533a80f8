"""`moe-hf pull`: brings a model of the Hub into a folder."""

import argparse
import shlex
import sys

from huggingface_hub.utils import disable_progress_bars

from moe_hf.base.tokenizer_source import TOKENIZER_FILES
from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.sharing.pull import PullReport, pull_model


def main(argv: list[str] | None = None, prog: str = "moe-hf pull") -> int:
    """Pull the model and say what arrived; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Pull a model of the Hub into a new folder. All files are of one commit; the folder appears when "
        "all have arrived, with the sizes and checksums that the Hub names. A pull that was interrupted goes on when "
        "it is called again. Pickles are left out, and no code is run.",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub")
    parser.add_argument("folder", metavar="DIR", help="folder to create")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in DIR when the new one is complete"
    )
    args = parser.parse_args(argv)

    if not sys.stderr.isatty():
        disable_progress_bars()
    report = pull_model(args.repo_id, args.folder, args.revision, args.overwrite)
    Screen(soft_wrap=True).print(_summary(report, args.repo_id))
    return 0


def _summary(report: PullReport, repo_id: str) -> str:
    lines = [f"{report.folder}: {len(report.names)} files, {in_bytes(report.size)}, of {repo_id} at {report.commit}"]
    if report.left_out:
        lines.append(f"left out: {', '.join(report.left_out)} (pickles, which can run code)")
    if report.code:
        lines.append(f"code:     {', '.join(report.code)}; runs with trust_remote_code=True alone, so read it first")
    if {*report.names} & {*TOKENIZER_FILES}:
        lines.append(f"chat:     moe-hf chat --model {shlex.quote(str(report.folder))}")
    return "\n".join(lines)
