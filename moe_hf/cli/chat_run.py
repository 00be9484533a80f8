"""Opens the model, the console and the files that a chat's command line names, and lets it run."""

import argparse
import os
import sys
import threading
from collections.abc import Mapping, Sequence

import huggingface_hub
import transformers

from moe_hf.base.errors import ConfigError
from moe_hf.cli.chat_script import answer_prompts, read_prompts
from moe_hf.cli.plain_console import PlainConsole
from moe_hf.cli.terminal_console import TerminalConsole, history_path
from moe_hf.cli.web.server import LOOPBACK, check_address, open_page, require_gradio
from moe_hf.inference.answering import TextModel
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.commands import COMMANDS
from moe_hf.inference.console import Console
from moe_hf.inference.json_answers import read_schema
from moe_hf.inference.model_files import is_a, newest_model
from moe_hf.inference.remote_model import RemoteTextModel
from moe_hf.inference.repl import run
from moe_hf.inference.settings import SETTINGS, with_setting
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.inference.transcript import TranscriptFile, read_transcript

# Flags that mean nothing to a server, and what they are when nobody gave them.
_OF_LOCAL_MODELS = {
    "architecture": None,
    "device": "auto",
    "dtype": "auto",
    "attn_implementation": None,
    "json_schema": None,
}


def chat(args: argparse.Namespace) -> None:
    """Talk as the words of the command line say.

    Args:
        args: what the parser of `moe_hf.cli.chat` makes of them.
    """
    _quiet()
    scripted = bool(args.prompt or args.per_line or args.json or args.json_schema)
    # Where there is no console, as under a service, there may be no stdin at all.
    interactive = not scripted and (args.plain or (sys.stdin is not None and sys.stdin.isatty()))
    # Stdin is read before the model, so that a mistake shows at once.
    prompts = [] if interactive else read_prompts(args.prompt, args.per_line)
    session = _open_session(args)
    transcript = None if args.transcript is None else TranscriptFile(args.transcript)
    # The console holds this very mapping: after /model, Tab offers the layers of the new model.
    words = {name: list(command.words) for name, command in COMMANDS.items()}

    def load(source: str) -> TextModel:
        model = _load(args, source)
        words["experts"] = _expert_words(model)
        return model

    words["experts"] = _expert_words(session.model)
    console = _console(args, interactive, words)
    conversation = Chat(session, console, load, transcript)
    if not session.model.is_chat:
        # Whoever continues a text wants the text itself.
        console.markdown = False
        why = "--raw" if args.raw else "this model has no chat template, so it knows no turns"
        console.notice(f"{why}: it continues the text that you write (/reset begins a new text)")
    if args.experts and not session.model.sparse_layers:
        console.notice(session.model.no_experts)
    session.record_routing = args.experts and bool(session.model.sparse_layers)
    if interactive:
        model = session.model
        total = model.num_parameters()
        size = "" if total is None else f"{total:,} parameters, "
        console.notice(f"{model.name}, {size}{model.place}. /help lists commands")
        run(conversation)
    else:
        answer_prompts(conversation, prompts, args.json, args.per_line, whole_only=args.json_schema is not None)


def chat_in_browser(args: argparse.Namespace) -> None:
    """Serves the web page, as the words of the command line say, until Ctrl-C.

    Args:
        args: what the parser of `moe_hf.cli.chat` makes of them.

    Raises:
        ConfigError: a flag has no meaning there, or the port is taken.
        BackendUnavailableError: gradio is not installed.
    """
    for flag in ("prompt", "per_line", "json", "json_schema", "plain", "load", "transcript"):
        if getattr(args, flag):
            raise ConfigError(
                f"--{flag} is of no use with --web, where one talks in the browser; leave one of them out"
            )
    # Before the model, which may take minutes.
    host = args.host or LOOPBACK
    check_address(host, args.port)
    require_gradio()
    _quiet()
    page, address = open_page(_open_session(args), host, args.port)
    if host not in (LOOPBACK, "localhost"):
        print(f"whoever reaches {host} can talk: there is no password", file=sys.stderr)
    print(f"the chat is at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    try:
        # Until Ctrl-C: nothing else ends it.
        threading.Event().wait()
    finally:
        page.close()


def _quiet() -> None:
    # A model reports trouble by errors here; its progress bars and hints would only mix with the answers.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()


def _open_session(args: argparse.Namespace) -> ChatSession:
    model = _remote(args, args.model) if args.url else _local(args)
    settings = model.own_settings
    for key in SETTINGS:
        value = getattr(args, key)
        if value is not None:
            settings = with_setting(settings, key, value)
    session = ChatSession(model, settings)
    if args.load is not None:
        session.load(read_transcript(args.load)[-1])
    # After the transcript, whose own system message it replaces.
    if args.system is not None:
        session.set_system(args.system)
    return session


def _local(args: argparse.Namespace) -> CausalTextModel:
    # Before the model, which may take minutes.
    schema = None if args.json_schema is None else read_schema(args.json_schema)
    model = _read(args, args.model or str(newest_model(args.runs_dir, args.architecture)))
    if args.architecture and not is_a(model.model.config, args.architecture):
        raise ConfigError(f"--architecture {args.architecture} was asked for, but {model.name} is of another kind")
    if schema is not None:
        model.answer_by(schema)
    return model


def _remote(args: argparse.Namespace, name: str | None) -> RemoteTextModel:
    for flag, neutral in _OF_LOCAL_MODELS.items():
        if getattr(args, flag) != neutral:
            raise ConfigError(f"--{flag} is for a model that runs here, --url names one that runs elsewhere; leave one")
    return RemoteTextModel.connect(args.url, name, args.raw)


def _load(args: argparse.Namespace, source: str) -> TextModel:
    return _remote(args, source) if args.url else _read(args, source)


def _read(args: argparse.Namespace, source: str) -> CausalTextModel:
    return CausalTextModel.load(source, args.device, args.dtype, args.attn_implementation, args.raw)


def _expert_words(model: TextModel) -> list[str]:
    return ["on", "off", *map(str, model.sparse_layers)]


def _console(args: argparse.Namespace, interactive: bool, words: Mapping[str, Sequence[str]]) -> Console:
    terminal = interactive and not args.plain and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if terminal:
        return TerminalConsole(words, history_path())
    return PlainConsole()
