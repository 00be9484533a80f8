"""Conversations on disk: one `{"messages": [...]}` object per line, the format that chat training reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_hf.base.errors import CheckpointError
from moe_hf.base.files import atomic_file
from moe_hf.text.chat_template import Message

LARGEST_FILE = 64 * 2**20
ROLES = ("system", "user", "assistant")


class TranscriptFile:
    """A transcript that one conversation is written to, again and again, as its last line.

    Conversations that were in the file before stay; the file is replaced as a whole, so that it is never half-written.
    A new file is for its owner alone; one that is there, be it empty, keeps its mode, and a symbolic link stays one.

    Raises:
        CheckpointError: the file exists but is no transcript; it is left alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file; name one to write the transcript to")
        holds_some = path.exists() and path.stat().st_size > 0
        self._earlier: list[list[Message]] = read_transcript(path) if holds_some else []

    def save(self, messages: Sequence[Message]) -> None:
        """Writes the earlier conversations and this one.

        Raises:
            CheckpointError: the folder can't be written to.
        """
        conversations = [*self._earlier, list(messages)]
        text = "".join(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in conversations)
        try:
            with atomic_file(self.path, private=True) as aside:
                aside.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"can't write the transcript {self.path}: {error.strerror or error}") from error

    def start_next(self, messages: Sequence[Message]) -> None:
        """Keeps this conversation as it is; the next `save` begins a new line."""
        self._earlier.append(list(messages))


def read_transcript(path: Path) -> list[list[Message]]:
    """All conversations of a transcript, checked turn by turn since the file may come from anyone.

    A conversation is an optional system message, then user and assistant in turn; it may end with either.

    Raises:
        CheckpointError: the file can't be read, is too large, or a line is no conversation; names the line.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise CheckpointError(f"{path} has {size} bytes; a transcript may have {LARGEST_FILE}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't read the transcript {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no transcript: it is not UTF-8 text (byte {error.start})") from error
    # Not by splitlines, which breaks lines at U+2028 and its like, too: JSON may hold them.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise CheckpointError(f"{path} is empty; expected one conversation per line")
    return [_conversation(f"{path}, line {number}", line) for number, line in lines]


def _conversation(where: str, line: str) -> list[Message]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where} is not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise CheckpointError(f"{where} is not a conversation: it is nested too deeply") from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise CheckpointError(f'{where} is not a conversation: expected {{"messages": [...]}} that is not empty')
    return check_messages(where, messages)


def check_messages(where: str, messages: Sequence[Any]) -> list[Message]:
    """The messages with nothing but role and content, if they form a conversation.

    Raises:
        CheckpointError: a message is malformed or out of turn; `where` begins the text.
    """
    checked: list[Message] = []
    for number, message in enumerate(messages, start=1):
        at = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise CheckpointError(f"{at}: expected an object with role and content, got {type(message).__name__}")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise CheckpointError(f"{at}: role must be one of {', '.join(ROLES)}, got {role!r:.60}")
        if not isinstance(content, str):
            raise CheckpointError(f"{at}: content must be text, got {type(content).__name__}")
        # Most texts are ASCII, which is seen at once; only the others are looked through.
        if not content.isascii() and any("\ud800" <= character <= "\udfff" for character in content):
            raise CheckpointError(f"{at}: content holds half of a surrogate pair, which is no text")
        before = checked[-1]["role"] if checked else None
        expected = ("assistant",) if before == "user" else ("user",) if before else ("system", "user")
        if role not in expected:
            raise CheckpointError(
                f"{at}: expected {' or '.join(expected)} here, got {role}; an optional system message comes first, "
                "then user and assistant take turns"
            )
        checked.append(Message(role=role, content=content))
    return checked
