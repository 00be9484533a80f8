"""Answers prompts without a conversation partner: for pipes and scripts, plain text or JSON on stdout."""

import sys
from collections.abc import Sequence
from typing import Any

from moe_hf.base.errors import ConfigError
from moe_hf.base.printable import json_line
from moe_hf.inference.chat import Chat
from moe_hf.inference.chat_session import Reply


def read_prompts(given: Sequence[str], per_line: bool) -> list[str]:
    """The prompts to answer: those given, where `-` stands for all of stdin; without any, stdin.

    Args:
        given: the values of `-p`.
        per_line: take each non-empty line of stdin as a prompt of its own.

    Raises:
        ConfigError: there is no prompt, or stdin is not UTF-8 text.
    """
    prompts: list[str] = []
    for prompt in given or ["-"]:
        if prompt != "-":
            prompts.append(prompt)
            continue
        text = _read_stdin()
        prompts += [line for line in text.splitlines() if line.strip()] if per_line else [text.rstrip("\r\n")]
    if not any(prompt.strip() for prompt in prompts):
        raise ConfigError(f"there is nothing to answer in the prompts {prompts}: give -p TEXT, or text on stdin")
    return prompts


def _read_stdin() -> str:
    if sys.stdin is None:
        return ""
    try:
        # As bytes: by the encoding of the locale, a wrong byte might pass for some other character.
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"stdin is not UTF-8 text (byte {error.start})") from error


def answer_prompts(chat: Chat, prompts: Sequence[str], as_json: bool, per_line: bool, whole_only: bool = False) -> None:
    """Answers the prompts in order; they are turns of one conversation, or with `per_line` one conversation each.

    Args:
        chat: answers.
        prompts: at least one.
        as_json: print a record of each answer instead of its text.
        per_line: as above.
        whole_only: print an answer when it has ended, and none that was cut off: half an object is no JSON.

    Raises:
        ConfigError: a prompt can't be answered, as in `ChatSession.ask`; what was answered before it is written.
        RuntimeError: an answer was cut off, with `whole_only`.
        KeyboardInterrupt: Ctrl-C cut an answer short; its text so far is written.
    """
    for number, prompt in enumerate(prompts, start=1):
        if per_line and number > 1:
            chat.begin_conversation()
            chat.session.reset()
        if not (as_json or whole_only):
            if chat.say(prompt).finish_reason == "interrupted":
                raise KeyboardInterrupt
            continue
        reply = chat.session.ask(prompt, lambda text: None)
        chat.notice_unseen(reply)
        if whole_only and reply.finish_reason != "stop":
            raise RuntimeError(
                f"the answer to {prompt!r} was cut off after {reply.num_tokens} tokens, before its JSON was whole; "
                "raise --max_new_tokens, or bound the schema (maxLength, maxItems, maximum)"
            )
        # At once: whoever reads the pipe may wait for this answer before asking on.
        print(json_line(reply_record(prompt, chat.session.model.name, reply)) if as_json else reply.text, flush=True)
        chat.autosave()


def reply_record(prompt: str, model: str, reply: Reply) -> dict[str, Any]:
    """A reply as the object that `--json` prints.

    If the routing was recorded it has `token_texts`, one text per token of the answer, which joined give the answer
    (empty for a token that is only a part of a character), and `experts`; the last token may have none.
    """
    record: dict[str, Any] = {
        "prompt": prompt,
        "text": reply.text,
        "tokens": reply.num_tokens,
        "prompt_tokens": reply.num_prompt_tokens,
        "seconds": round(reply.seconds, 4),
        "tokens_per_second": round(reply.tokens_per_second, 2),
        "finish_reason": reply.finish_reason,
        "seed": reply.seed,
        "unseen_messages": reply.num_unseen,
        "model": model,
    }
    if reply.routing is not None:
        record["token_texts"] = [
            text for piece in reply.routing.pieces for text in [""] * (piece.num_tokens - 1) + [piece.text]
        ]
        record["experts"] = [
            {"layer": layer, "top_expert": reply.routing.top_experts(row), "load": reply.routing.load(row)}
            for row, layer in enumerate(reply.routing.layers)
        ]
    return record
