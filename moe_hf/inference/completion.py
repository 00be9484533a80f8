"""What Tab offers in a chat: commands, setting names, words that a command takes."""

from collections.abc import Mapping, Sequence


def completions(line: str, choices: Mapping[str, Sequence[str]]) -> tuple[int, list[str]]:
    """Where the word to complete begins in `line`, and what it can become.

    Args:
        line: what stands before the cursor.
        choices: the words that each command takes first; its keys are the commands, without the slash.

    >>> completions("/se", {"set": ["top_k="], "undo": []})
    (0, ['/set '])
    >>> completions("/set to", {"set": ["top_k="], "undo": []})
    (5, ['top_k='])
    """
    if not line.startswith("/") or "\n" in line:
        return len(line), []
    command, space, rest = line[1:].partition(" ")
    if not space:
        # A space where more is expected, so that one can type on.
        return 0, [f"/{name}{' ' if choices[name] else ''}" for name in choices if name.startswith(command)]
    if " " in rest or "=" in rest:
        return len(line), []
    return len(line) - len(rest), [word for word in choices.get(command, ()) if word.startswith(rest)]
