"""`chat.py`: talk with a trained model, in a terminal or from a script."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_hf.base.errors import BackendUnavailableError, CheckpointError, ConfigError
from moe_hf.base.printable import one_line
from moe_hf.inference.settings import DEVICES, DTYPES, SETTINGS

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

EPILOG = """\
examples:
  chat.py                                   talk with the newest model under runs/
  chat.py -p "What is 2 + 3?"               one answer on stdout, remarks on stderr
  chat.py -p "My name is Ann." -p "Who am I?"     several turns of one conversation
  cat letter.txt | chat.py                  all of stdin is one prompt
  chat.py --url http://127.0.0.1:8000/v1    the same behind a server
  chat.py --per_line --json < questions.txt one JSON object per line, each its own conversation
  chat.py --web                             talk in the browser
"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command line; returns the exit status.

    It is 0, 1 for a failure while running, 2 for wrong input, 130 after Ctrl-C.

    Args:
        argv: the words behind the command; None takes those of the process.
        prog: what the help calls the command.
    """
    args = build_parser(prog).parse_args(argv)
    try:
        # Only now: the help must not wait for torch and transformers.
        from moe_hf.cli.chat_run import chat, chat_in_browser

        (chat_in_browser if args.web else chat)(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answers has left; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return WRONG_INPUT if isinstance(error, (ConfigError, CheckpointError, BackendUnavailableError)) else FAILED
    return 0


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line of `chat.py`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="FOLDER|ID",
        help="what to talk with, also a .gguf file or smollm2 (default: the newest under --runs_dir)",
    )
    model.add_argument(
        "--url",
        metavar="URL",
        help="talk with --model behind an OpenAI-compatible server, such as http://127.0.0.1:8000/v1 of moe-hf serve; "
        "its key is taken from OPENAI_API_KEY",
    )
    model.add_argument(
        "--architecture",
        metavar="NAME",
        help="take only such a model: moe, dense, gpt2, llama, retnet, mamba, hyena, rwkv, megabyte, or a pattern of "
        "mixers",
    )
    model.add_argument("--runs_dir", type=Path, default=Path("runs"), help="where training puts its runs (%(default)s)")
    model.add_argument("--device", choices=DEVICES, default="auto")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as stored")
    model.add_argument("--raw", action="store_true", help="continue text: no turns, no chat template")
    model.add_argument("--attn_implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    talk = parser.add_argument_group("conversation")
    talk.add_argument("--system", metavar="TEXT", help="system message")
    talk.add_argument("--load", type=Path, metavar="FILE", help="go on with the last conversation of a transcript")
    talk.add_argument("--transcript", type=Path, metavar="FILE", help="add the conversation to FILE after every answer")
    talk.add_argument("--experts", action="store_true", help="show which expert takes each token")
    talk.add_argument("--plain", action="store_true", help="simple prompt without colours, also where stdin is a pipe")
    web = parser.add_argument_group("web page (needs the extra `web`)")
    web.add_argument("--web", action="store_true", help="talk in the browser instead, at http://127.0.0.1:7860")
    web.add_argument("--port", type=int, metavar="N", help="another port (default: the first free one from 7860 on)")
    web.add_argument(
        "--host", metavar="ADDRESS", help="another address; who reaches it can talk (default: this machine)"
    )
    script = parser.add_argument_group("scripts")
    script.add_argument("-p", "--prompt", action="append", default=[], metavar="TEXT", help="answer this; - is stdin")
    script.add_argument("--per_line", action="store_true", help="each line of stdin is a prompt and a conversation")
    script.add_argument("--json", action="store_true", help="one JSON object per answer")
    script.add_argument(
        "--json_schema",
        type=Path,
        metavar="FILE",
        help="answers of -p are JSON by this schema (needs the extra `json`)",
    )
    script.add_argument("--debug", action="store_true", help="show the traceback of an error")
    answers = parser.add_argument_group("answers (default: what the model's generation config says)")
    for key, setting in SETTINGS.items():
        answers.add_argument(f"--{key}", metavar="VALUE", help=f"{setting.help}; {setting.allowed}")
    return parser
