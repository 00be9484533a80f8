"""`moe-hf push`: shares the model in a folder on the Hub."""

import argparse
import shlex
import sys

from huggingface_hub.utils import disable_progress_bars

from moe_hf.cli.screen import Screen
from moe_hf.export.self_contained import self_contained_texts
from moe_hf.sharing.push import PushReport, push_folder


def main(argv: list[str] | None = None, prog: str = "moe-hf push") -> int:
    """Push the folder and say what was pushed; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Push the model in a folder to the Hub as one commit: configuration, safetensors, tokenizer, "
        "pictures, and a card, which is written where there is none. Checked first: that the model is whole, and that "
        "no token lies in it. Pickles, checkpoints and hidden files stay here. A push that was interrupted goes on "
        "when it is called again. The token is that of HF_TOKEN or of `hf auth login`.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of the model")
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub, made where it is absent")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made from main where it is absent")
    parser.add_argument("--message", help="message of the commit")
    parser.add_argument(
        "--self_contained",
        action="store_true",
        help="push the code of the model as well, so that it loads where moe_hf is not installed",
    )
    args = parser.parse_args(argv)

    # Progress goes to stderr: stdout holds the result alone.
    console = Screen(stderr=True, soft_wrap=True)
    if not sys.stderr.isatty():
        disable_progress_bars()
    added = self_contained_texts(args.folder) if args.self_contained else None
    report = push_folder(args.folder, args.repo_id, args.private, args.revision, args.message, added=added)
    if report.notice:
        console.print(f"notice: the parameters were not compared with the model's: {report.notice}")
    Screen(soft_wrap=True).print(_summary(report, args.revision))
    return 0


def _summary(report: PushReport, revision: str | None) -> str:
    kind = "private" if report.private else "public"
    state = "pushed" if report.is_new else "nothing new:"
    lines = [f"{state} {len(report.names)} files, {kind}: {report.url}", f"card:     {report.card}"]
    if report.removed:
        lines.append(f"removed:  {', '.join(report.removed)}, weights of an earlier push")
    for reason in dict.fromkeys(report.left_out.values()):
        names = [name for name, why in report.left_out.items() if why == reason]
        lines.append(f"not sent: {', '.join(names)} ({reason})")
    at = f" --revision {shlex.quote(revision)}" if revision else ""
    lines.append(f"get it:   moe-hf pull {report.repo_id} {shlex.quote(report.repo_id.partition('/')[2])}{at}")
    return "\n".join(lines)
