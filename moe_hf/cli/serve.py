"""`moe-hf serve`: an OpenAI-compatible server for models with or without experts."""

import argparse
import os
import sys
from pathlib import Path

from transformers.utils import logging

from moe_hf.base.errors import ConfigError
from moe_hf.base.loopback import is_loopback
from moe_hf.base.model_source import find_model
from moe_hf.base.optional import require
from moe_hf.inference.model_files import newest_model
from moe_hf.inference.settings import DEVICES, DTYPES
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.serving.listening import serve, take_address, url_of

KEY_VARIABLE = "MOE_HF_API_KEY"
_LOG_LEVELS = ("error", "warning", "info", "debug")
_LARGEST_BODY = 2**30


def main(argv: list[str] | None = None, prog: str = "moe-hf serve") -> int:
    """Serve until a signal; returns the exit code."""
    args = _parser(prog).parse_args(argv)
    for package in ("fastapi", "uvicorn", "openai"):
        require(package, "moe-hf serve")
    _check(args)
    key = _api_key(args.api_key_file)
    sources = named_sources(args.model or [str(newest_model(Path("runs")))])
    for source in sources.values():
        # Before minutes are spent on the first.
        find_model(source)
    taken = take_address(args.host, args.port)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Not before the packages are there: its classes are built on them.
    from moe_hf.serving.application import build_application
    from moe_hf.serving.served import ServedModel

    served = []
    for name, source in sources.items():
        talker = CausalTextModel.load(source, args.device, args.dtype, args.attn_implementation)
        routers = tuple(zip(talker.sparse_layers, talker.routers.values(), strict=True))
        served.append(
            ServedModel(
                name,
                talker.model,
                talker.tokenizer,
                talker.stop_ids,
                talker.context_limit,
                routers,
                talker.experts_per_token,
            )
        )
    cache_tokens = args.cache_tokens if args.continuous_batching else 0
    is_private = is_loopback(taken.getsockname()[0])
    app = build_application(
        served, key, args.max_body_bytes, args.max_requests, cache_tokens, loopback_only=is_private and key is None
    )
    if key is None and not is_private:
        sys.stderr.write(f"{prog}: anyone who reaches {args.host} can use the models; set {KEY_VARIABLE} to a secret\n")

    def on_ready() -> None:
        print(f"{', '.join(sources)} at {url_of(taken)}", flush=True)

    try:
        serve(app, taken, args.log_level, on_ready)
    finally:
        app.close()
    return 0


def named_sources(words: list[str]) -> dict[str, str]:
    """Name -> source of each word: NAME=MODEL, or MODEL, whose name is that of its folder or file, or its Hub id.

    Raises:
        ConfigError: a name is empty, or two models have the same.

    >>> named_sources(["runs/a/final", "small=openai/gpt2", "org/model"])
    {'final': 'runs/a/final', 'small': 'openai/gpt2', 'org/model': 'org/model'}
    """
    named: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).exists():
            is_local = Path(word).exists() or word.count("/") != 1
            name, source = (Path(word).resolve().name.removesuffix(".gguf") if is_local else word), word
        if not (name and source):
            raise ConfigError(f"{word!r} names no model; write MODEL or NAME=MODEL")
        if name in named:
            raise ConfigError(f"{named[name]} and {source} are both called {name}; write NAME={source}")
        named[name] = source
    return named


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve models by the OpenAI protocol: /v1/chat/completions, /v1/completions, /v1/models, and "
        "/health and /metrics. SIGTERM finishes the running answers.",
    )
    parser.add_argument(
        "model",
        nargs="*",
        metavar="[NAME=]MODEL",
        help="a folder, a Hub id, a .gguf file or a packaged model (default: the newest under runs/); requests call it "
        "by NAME, or by the name of the folder or file",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s; 0.0.0.0 for all)")
    parser.add_argument("--port", type=int, default=8000, help="%(default)s; 0 takes a free one")
    parser.add_argument(
        "--api_key_file",
        type=Path,
        metavar="FILE",
        help=f"file with the key that requests must bear (default: the variable {KEY_VARIABLE}; without it no key)",
    )
    parser.add_argument(
        "--max_body_bytes", type=int, default=2**20, metavar="N", help="largest body of a request (%(default)s)"
    )
    parser.add_argument(
        "--max_requests",
        type=int,
        default=1024,
        metavar="N",
        help="most requests at once, waiting ones included (%(default)s)",
    )
    parser.add_argument(
        "--continuous_batching",
        action="store_true",
        help="generate answers together instead of in turn: for models of attention alone; seeds have no effect then",
    )
    parser.add_argument(
        "--cache_tokens",
        type=int,
        default=2**15,
        metavar="N",
        help="with it, most tokens of prompts and answers that each model keeps at once (%(default)s)",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as stored")
    parser.add_argument("--attn_implementation", metavar="NAME", help="sdpa, eager, flash_attention_2, ...")
    parser.add_argument(
        "--log_level", choices=_LOG_LEVELS, default="warning", help="info: a line per request (%(default)s)"
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    for name, low, high in (
        ("port", 0, 65535),
        ("max_body_bytes", 1, _LARGEST_BODY),
        ("max_requests", 1, 10**6),
        ("cache_tokens", 64, 10**9),
    ):
        given = getattr(args, name)
        if not low <= given <= high:
            raise ConfigError(f"--{name}={given} is not allowed; it must be {low} to {high}")


def _api_key(file: Path | None) -> str | None:
    """The key, never shown: from the file, else from the environment."""
    if file is None:
        key, source = os.environ.get(KEY_VARIABLE), KEY_VARIABLE
    else:
        source = f"--api_key_file {file}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read {source}; it must be a text file with one key") from error
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {source} must be one word of ASCII characters, not empty")
    return key
