"""`python -m moe_hf COMMAND`, the same as `moe-hf COMMAND`: picks the command and reports its errors in one line."""

import importlib
import sys

from moe_hf.base.errors import did_you_mean
from moe_hf.base.exit_code import exit_code
from moe_hf.version import __version__

# Each command's module is imported only when it is called.
COMMANDS = {
    "train": ("moe_hf.cli.train", "train a model, or resume an interrupted run"),
    "chat": ("moe_hf.cli.chat", "talk to a trained model"),
    "list": ("moe_hf.cli.list", "show the models of this machine"),
    "rm": ("moe_hf.cli.rm", "remove a model of this machine"),
    "upcycle": ("moe_hf.cli.upcycle", "turn a dense model into a Mixture of Experts"),
    "quantize": ("moe_hf.cli.quantize", "store a model's experts in 8 or 4 bits"),
    "export": ("moe_hf.cli.export", "write a model with its code, or as GGUF for llama.cpp"),
    "serve": ("moe_hf.cli.serve", "serve models by the OpenAI protocol, to any client of it"),
    "push": ("moe_hf.cli.push", "share a model on the Hub"),
    "pull": ("moe_hf.cli.pull", "bring a model of the Hub into a folder"),
    "eval": ("moe_hf.cli.eval", "score models on text: perplexity and bits per byte, with intervals"),
    "bench": ("moe_hf.cli.bench", "measure the experts against transformers, the dense layer and the machine"),
    "profile": ("moe_hf.cli.profile", "say where the time of router, layer, block and training step goes"),
    "info": ("moe_hf.cli.info", "count the parameters, FLOPs and bytes of a model"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 1 for a failure while running, 2 for wrong input, 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"moe_hf {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        sys.stderr.write(f"moe-hf: unknown command {words[0]!r}{did_you_mean(words[0], list(COMMANDS))}\n\n{_usage()}")
        return 2
    return run_command(words[0], words[1:], prog=f"moe-hf {words[0]}")


def run_command(name: str, words: list[str], prog: str) -> int:
    """Run the command of that name with the words behind it; returns its exit code, as `main` does.

    Args:
        name: a key of `COMMANDS`.
        words: the flags and their values.
        prog: what its help and its errors call it.
    """
    # The import is part of the call: it takes seconds, in which Ctrl-C may be pressed.
    return exit_code(lambda: importlib.import_module(COMMANDS[name][0]).main(words, prog), prog)


def _usage() -> str:
    rows = "\n".join(f"  {name:<9}{meaning}" for name, (_, meaning) in COMMANDS.items())
    return f"usage: moe-hf COMMAND ...\n\n{rows}\n\nmoe-hf COMMAND --help tells each command's flags.\n"


if __name__ == "__main__":
    sys.exit(main())
