"""The chat template: how a conversation becomes one line of text, and which part of it is the assistant's."""

from typing import TypedDict


class Message(TypedDict):
    """One message of a conversation: role is `system`, `user` or `assistant`."""

    role: str
    content: str


USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '" + ASSISTANT + "' -}}"
    "{%- generation -%}{{- ' ' + message['content'] | trim + eos_token -}}{%- endgeneration -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- '" + USER + " ' + message['content'] | trim -}}"
    "{%- elif message['role'] == 'system' -%}"
    "{{- '" + SYSTEM + " ' + message['content'] | trim -}}"
    "{%- else -%}"
    "{{- raise_exception('unknown role ' + message['role'] + '; allowed: system, user, assistant') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '" + ASSISTANT + "' -}}{%- endif -%}"
)
"""Jinja source.

Each content is stripped of blanks at its ends and stands after one space, so that its first word is the same token as
elsewhere in a sentence; a decoded answer begins with that space. Each answer ends with the end-of-text token. A further
turn only appends: the rendering of k turns is a prefix of that of k + 1 turns, and a key/value cache stays valid.
The answers with their space and end-of-text token are marked as generation, for
`apply_chat_template(..., return_assistant_tokens_mask=True)`.
"""
