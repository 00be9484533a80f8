"""What Tab offers in a chat: commands, setting names and usual values, words that a command takes."""

from collections.abc import Mapping, Sequence


def completions(line: str, choices: Mapping[str, Sequence[str]]) -> tuple[int, list[str]]:
    """Where the word to complete begins in `line`, and what it can become.

    Args:
        line: what stands before the cursor.
        choices: the words that each command takes; its keys are the commands, without the slash. `key=value` is
            offered once `key=` stands there.

    >>> completions("/se", {"set": ["top_k="], "undo": []})
    (0, ['/set '])
    >>> completions("/set to", {"set": ["top_k="], "undo": []})
    (5, ['top_k='])
    >>> completions("/set top_k=5 top_k=", {"set": ["top_k=", "top_k=0", "top_k=50"]})
    (13, ['top_k=0', 'top_k=50'])
    """
    if not line.startswith("/") or "\n" in line:
        return len(line), []
    command, space, rest = line[1:].partition(" ")
    if not space:
        # A space where more is expected, so that one can type on.
        return 0, [f"/{name}{' ' if choices[name] else ''}" for name in choices if name.startswith(command)]
    before, _, word = rest.rpartition(" ")
    if before and "=" not in before:
        # Only assignments may follow one another.
        return len(line), []
    found = [choice for choice in choices.get(command, ()) if choice.startswith(word) and choice != word]
    return len(line) - len(word), [choice for choice in found if "=" in word or "=" not in choice[:-1]]
