"""The loop of a chat: reads an entry, does what it says, and outlives whatever goes wrong."""

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.inference.chat import Chat
from moe_hf.inference.commands import COMMANDS, LeaveChat
from moe_hf.inference.console import without_block


def run(chat: Chat) -> None:
    """Asks and answers until the user leaves: /exit, Ctrl-D, or Ctrl-C twice with nothing entered."""
    interrupted = False
    while True:
        try:
            line = chat.console.ask()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted:
                return
            interrupted = True
            chat.console.notice("press Ctrl-C once more to leave (or Ctrl-D, /exit)")
            continue
        interrupted = False
        try:
            enter(chat, line)
        except LeaveChat:
            return
        except KeyboardInterrupt:
            chat.console.notice("interrupted")
        # A wrong entry, a bad file, a failed generation, somebody's tokenizer or template: the session goes on.
        except Exception as error:
            chat.console.error(str(error) or type(error).__name__)


def enter(chat: Chat, line: str) -> None:
    """Does what one entry asks for: a command, or a message to answer.

    Raises:
        ConfigError: the entry is wrong.
        CheckpointError: a file that it names can't be used.
        LeaveChat: it was /exit.
    """
    # A terminal hands over bytes that are no text as lone surrogates, which no tokenizer takes.
    line = line.encode("utf-8", errors="replace").decode("utf-8")
    block = without_block(line)
    if block is not None:
        if block.strip():
            chat.say(block)
        return
    message = line.strip()
    if message.startswith("//"):
        chat.say(message[1:])
    elif message.startswith("/"):
        name, _, rest = message[1:].partition(" ")
        if name not in COMMANDS:
            hint = did_you_mean(name, list(COMMANDS))
            raise ConfigError(f"unknown command /{name}{hint} (/help lists all; // begins a message with a slash)")
        COMMANDS[name].action(chat, rest.strip())
    elif message:
        chat.say(message)
