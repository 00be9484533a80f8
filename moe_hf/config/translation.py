"""What all readers of a dense model's `config.json` share: names that stay the same, and values that cannot be kept."""

from collections.abc import Mapping
from typing import Any

from moe_hf.base.errors import CheckpointError

# What a dense model says and every family has too, under the same name.
_SHARED_NAMES = (
    "use_cache bos_token_id eos_token_id pad_token_id tie_word_embeddings dtype torch_dtype id2label label2id "
    "problem_type"
).split()


def renamed(dense: Mapping[str, Any], names: Mapping[str, str], same: str = "") -> dict[str, Any]:
    """Those fields of a dense model's `config.json` that a family has, by the family's names.

    Args:
        dense: the content of the file.
        names: from the dense model's names to the family's.
        same: names that are the same in both, separated by spaces, besides those that are so in every family.

    >>> renamed({"n_embd": 8, "vocab_size": 9, "n_ctx": 7}, {"n_embd": "hidden_size"}, same="vocab_size")
    {'hidden_size': 8, 'vocab_size': 9}
    """
    names = {**names, **{name: name for name in [*_SHARED_NAMES, *same.split()]}}
    return {names[key]: value for key, value in dense.items() if key in names}


def require_value(what: str, dense: Mapping[str, Any], name: str, *allowed: Any) -> None:
    """Check a field that would change what the dense model computes; left out, it is the first of `allowed`.

    Raises:
        CheckpointError: it has another value than those that the family can reproduce.
    """
    if dense.get(name, allowed[0]) not in allowed:
        raise CheckpointError(
            f"the dense {what} sets {name}={dense[name]!r}; only {allowed[0]!r} can be carried over exactly"
        )
