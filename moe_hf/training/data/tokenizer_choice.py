"""Finds the tokenizer of a run: the starting model's own, a saved one, or one trained on the data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from moe_hf.base.errors import CheckpointError, ConfigError, first_line
from moe_hf.base.model_source import find_model
from moe_hf.base.tokenizer_source import load_tokenizer
from moe_hf.text.chat_template import CHAT_TEMPLATE
from moe_hf.text.tokenizers import KINDS, train_tokenizer
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.rows import Rows, conversation_in

MOST_CHARACTERS = 50_000_000
"""A trained tokenizer looks at no more characters of the data than this."""

_SHORTEST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
_WAY_OUT = f"give --tokenizer: a directory, a hub id, or {', '.join(KINDS)} to train one on the data"


def choose_tokenizer(
    arguments: DataArguments, rows: Rows, context_length: int, starting_model: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that the arguments ask for.

    Fresh weights and plain text give a tokenizer without a chat template, unless one is asked for: the saved model
    then says of itself that it continues text.

    Args:
        arguments: `tokenizer`, `vocab_size`, `chat_template`.
        rows: what a tokenizer is trained on.
        context_length: noted in a trained tokenizer as its longest input, in tokens.
        starting_model: the directory or hub id that training starts from, whose tokenizer is kept unless another is
            asked for.

    Raises:
        ConfigError: none was asked for and none is there, it can't be loaded, or the chat template's file is absent.
    """
    name = arguments.tokenizer or starting_model
    if name is None:
        raise ConfigError(_WAY_OUT)
    if name in KINDS:
        tokenizer: Any = train_tokenizer(_texts(rows), name, arguments.vocab_size or 768, context_length)
    else:
        tokenizer = _saved_tokenizer(name)
    if arguments.chat_template is not None:
        tokenizer.chat_template = _chat_template(arguments.chat_template)
    elif rows.kind == "text" and (starting_model is None or name in KINDS):
        # What a chat looks for: weights that saw nothing but plain text know no turns.
        tokenizer.chat_template = None
    # On the shortest conversation a broken template shows at once, not after minutes of encoding.
    if rows.kind == "messages" and tokenizer.chat_template:
        _check_chat_template(tokenizer, arguments.chat_template or name)
    return tokenizer


def vocabulary_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs for every id of the tokenizer, which may leave some out."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def _saved_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        source = find_model(name)
    except CheckpointError as error:
        raise ConfigError(f"no tokenizer can be loaded from {name!r} ({error}); {_WAY_OUT}") from error
    try:
        return load_tokenizer(source)
    except CheckpointError as error:
        raise ConfigError(f"{error}; {_WAY_OUT}") from error
    except OSError as error:
        raise ConfigError(f"no tokenizer can be loaded from {name!r} ({first_line(error)}); {_WAY_OUT}") from error


def _chat_template(name: str) -> str:
    if name == "moe_hf":
        return CHAT_TEMPLATE
    if not Path(name).is_file():
        raise ConfigError(f"--chat_template {name}: there is no such file; give a Jinja file, or moe_hf")
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--chat_template {name} is not UTF-8 text ({error}); save it as UTF-8") from error


def _check_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    try:
        rendered = str(tokenizer.apply_chat_template(_SHORTEST, tokenize=False))
    # A chat template is somebody's program, which can fail in any way.
    except Exception as error:
        line = f" line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(
            f"the chat template of {name}{line} fails on the shortest conversation "
            f"({type(error).__name__}: {' '.join(str(error).split())}); mend it, or give --chat_template moe_hf"
        ) from error
    if not rendered.strip():
        raise ConfigError(f"the chat template of {name} writes nothing; mend it, or give --chat_template moe_hf")


def _texts(rows: Rows) -> Iterator[str]:
    """The data's texts, up to `MOST_CHARACTERS`, in pieces that a tokenizer's trainer takes quickly."""
    left = MOST_CHARACTERS
    for row in rows.dataset:
        if rows.kind == "text":
            texts = [row["text"]]
        else:
            # The chat template puts a blank before each message, which makes its first word the same as elsewhere.
            texts = [f" {message['content']}" for message in conversation_in(row["messages"])]
        for text in texts:
            for start in range(0, min(len(text), left), 100_000):
                yield text[start : start + 100_000]
            left -= len(text)
            if left <= 0:
                return
