"""The commands of a chat, one function each, and the table that names them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_statistics import statistics_rows
from moe_hf.inference.console import Span, without_block
from moe_hf.inference.settings import setting_words, show_settings, split_assignment, with_setting
from moe_hf.inference.transcript import TranscriptFile, read_transcript


class Command(NamedTuple):
    """How a command is written, what it does, and the function that does it to a chat, given the rest of the line.

    `words` are what Tab offers behind it. The function raises ConfigError or CheckpointError when it can't be done.
    """

    usage: str
    help: str
    action: Callable[[Chat, str], None]
    words: Sequence[str] = ()


class LeaveChat(Exception):
    """Raised by /exit."""


def _help(chat: Chat, rest: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [[Span(f"{command.usage:<{width}}  ", "bold"), Span(command.help)] for command in COMMANDS.values()]
    lines.append([Span('Several lines: paste, Alt-Enter, or """ before and after.', "dim")])
    lines.append([Span("Ctrl-C stops an answer or clears the line; twice with nothing entered it leaves.", "dim")])
    lines.append([Span("A message that starts with a slash: write //.", "dim")])
    chat.console.show(lines)


def _reset(chat: Chat, rest: str) -> None:
    chat.begin_conversation()
    chat.session.reset()
    chat.console.notice("new conversation; system message and settings stay")


def _undo(chat: Chat, rest: str) -> None:
    question = chat.session.undo()
    chat.autosave()
    chat.console.notice(f"dropped: {shortened(question)}")


def _retry(chat: Chat, rest: str) -> None:
    settings = chat.session.settings
    if not settings.do_sample and chat.session.last_question is not None:
        chat.console.notice(f"sampling at temperature {settings.temperature}, since greedy would repeat itself")
    chat.retry()


def _edit(chat: Chat, rest: str) -> None:
    question = chat.session.last_question
    if question is None:
        raise ConfigError("there is nothing to edit yet; say something first")
    text = rest
    if not rest:
        if not chat.console.can_prefill:
            raise ConfigError(f"write the new text behind the command: /edit TEXT (it was: {shortened(question)})")
        try:
            text = chat.console.ask(question)
        except (KeyboardInterrupt, EOFError):
            text = ""
    block = without_block(text)
    text = text if block is None else block
    if not text.strip():
        chat.console.notice("not edited")
        return
    # Not before there is a new text: until then the old question stays.
    chat.session.undo()
    chat.say(text)


def _system(chat: Chat, rest: str) -> None:
    if not rest:
        chat.console.notice(f"system message: {chat.session.system or '(none)'}")
        return
    chat.session.set_system(None if rest == "-" else rest)
    chat.console.notice("system message removed" if rest == "-" else "system message set")


def _set(chat: Chat, rest: str) -> None:
    settings = chat.session.settings
    if rest:
        # `top_p = 0.9` is one assignment with blanks in it: only several are split at theirs.
        for assignment in rest.split() if rest.count("=") > 1 else [rest]:
            settings = with_setting(settings, *split_assignment(assignment))
        # Only now: a wrong assignment leaves all settings as they were.
        chat.session.settings = settings
        chat.console.notice("  ".join(f"{key}={value}" for key, value, _ in show_settings(settings)))
        return
    rows = show_settings(settings)
    chat.console.show([[Span(f"{f'{key}={value}':<26} ", "bold"), Span(text)] for key, value, text in rows])


def _save(chat: Chat, rest: str) -> None:
    if not rest:
        raise ConfigError("/save needs the name of a file; write /save FILE.jsonl")
    if not chat.session.exchanges:
        raise ConfigError(f"there is nothing to save to {rest} yet; say something first")
    path = Path(rest).expanduser()
    # The same object as before: a new one would take this conversation's own line for an earlier conversation.
    file = chat.saved.get(str(path)) or TranscriptFile(path)
    file.save(chat.session.messages)
    chat.saved[str(path)] = file
    chat.console.notice(f"saved {len(chat.session.messages)} messages to {path}")


def _load(chat: Chat, rest: str) -> None:
    if not rest:
        raise ConfigError("/load needs the name of a file; write /load FILE.jsonl")
    # Read first: a file that is no transcript leaves the present conversation alone.
    conversations = read_transcript(Path(rest).expanduser())
    chat.begin_conversation()
    chat.session.load(conversations[-1])
    which = "" if len(conversations) == 1 else f", the last of {len(conversations)} conversations"
    chat.console.notice(f"loaded {len(conversations[-1])} messages{which}")
    if chat.session.pending is not None:
        chat.console.notice(f"without an answer (/retry gives one): {shortened(chat.session.pending)}")


def _experts(chat: Chat, rest: str) -> None:
    session = chat.session
    layers = session.model.sparse_layers
    if not layers:
        chat.console.notice(session.model.no_experts)
        return
    if rest in ("on", "off", ""):
        session.record_routing = not session.record_routing if not rest else rest == "on"
    elif rest in map(str, layers):
        chat.routing_layer, session.record_routing = int(rest), True
    else:
        raise ConfigError(f"/experts takes on, off or a sparse layer ({', '.join(map(str, layers))}), got {rest!r}")
    coloured = chat.routing_layer if chat.routing_layer in layers else layers[-1]
    chat.console.notice(
        f"experts on: tokens show their expert in layer {coloured} (/experts N for another), bars show all layers"
        if session.record_routing
        else "experts off"
    )


def _markdown(chat: Chat, rest: str) -> None:
    console = chat.console
    if rest not in ("on", "off", ""):
        raise ConfigError(f"/markdown takes on or off, got {rest!r}")
    if not console.can_draw_markdown:
        console.notice("answers are shown as they are here: there is no terminal that could draw Markdown")
        return
    console.markdown = not console.markdown if not rest else rest == "on"
    console.notice(
        "answers are drawn as Markdown" if console.markdown else "answers are shown as the model writes them"
    )


def _stats(chat: Chat, rest: str) -> None:
    rows = statistics_rows(chat.session, chat.replies)
    width = max(len(name) for name, _ in rows)
    chat.console.show([[Span(f"{name:<{width}}  ", "bold"), Span(value)] for name, value in rows])


def _model(chat: Chat, rest: str) -> None:
    if not rest:
        chat.console.notice(f"model: {chat.session.model.name}")
        return
    chat.session.model = chat.load_model(rest)
    if not chat.session.model.sparse_layers:
        chat.session.record_routing = False
    kept = ", the conversation goes on" if chat.session.exchanges else ""
    chat.console.notice(f"model: {chat.session.model.name}{kept}")


def _exit(chat: Chat, rest: str) -> None:
    raise LeaveChat


def shortened(text: str, width: int = 60) -> str:
    """The text on one line, cut to `width` characters.

    >>> shortened("one two", width=5)
    'one …'
    """
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


COMMANDS: Registry[Command] = Registry(
    "command",
    {
        "help": Command("/help", "this list", _help),
        "reset": Command("/reset", "begin a new conversation", _reset),
        "undo": Command("/undo", "drop the last question and its answer", _undo),
        "retry": Command("/retry", "answer the last question again, with a new seed", _retry),
        "edit": Command("/edit [TEXT]", "change the last question and answer it", _edit),
        "system": Command("/system [TEXT | -]", "show, set or remove (-) the system message", _system, ["-"]),
        "set": Command("/set [KEY=VALUE ...]", "show or change settings", _set, setting_words()),
        "save": Command("/save FILE", "add the conversation to a transcript (JSON lines)", _save),
        "load": Command("/load FILE", "go on with the last conversation of a transcript", _load),
        "experts": Command("/experts [on | off | N]", "show which expert takes each token", _experts, ["on", "off"]),
        "markdown": Command(
            "/markdown [on | off]", "draw answers as Markdown, or as they are", _markdown, ["on", "off"]
        ),
        "stats": Command("/stats", "tokens, speed, context, memory, seed", _stats),
        "model": Command("/model [FOLDER | ID]", "show or change the model", _model),
        "exit": Command("/exit", "leave (also Ctrl-D)", _exit),
    },
)
