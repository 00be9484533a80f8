"""Says in a model card how the model is loaded, with this package and without it."""

import re
from typing import NamedTuple


class Loading(NamedTuple):
    """What decides how a model is loaded.

    Attributes:
        model_type: as its `config.json` names it.
        is_own: whether its class is of this package.
        has_code: whether Python files beside the weights define it (`auto_map` in its `config.json`).
        auto_class: the Auto class that gives it.
        has_tokenizer: whether a tokenizer lies beside it; None where that is not known yet.
        is_quantized: whether this package has quantised its experts.
    """

    model_type: str
    is_own: bool
    has_code: bool = False
    auto_class: str = "AutoModelForCausalLM"
    has_tokenizer: bool | None = True
    is_quantized: bool = False


_PART = " They are a part of moe_hf, under the Apache License 2.0."
_CAUSAL = ("AutoModelForCausalLM", "text-generation")
# The first end that fits counts.
_TASKS = {
    "ForCausalLM": _CAUSAL,
    "LMHeadModel": _CAUSAL,
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "Model": ("AutoModel", "feature-extraction"),
}


def task_of(architecture: str) -> tuple[str, str]:
    """Auto class and task of a model by the name of its class; one that says nothing is a causal language model.

    The task is empty where the class is for one that is not known here.

    >>> task_of("GPT2WithMoE"), task_of("MixtralForSequenceClassification")[0], task_of("ViTForImageClassification")
    (('AutoModelForCausalLM', 'text-generation'), 'AutoModelForSequenceClassification', ('AutoModel', ''))
    """
    usual = ("AutoModel", "") if re.search(r"For[A-Z]", architecture) else _CAUSAL
    return next((task for end, task in _TASKS.items() if architecture.endswith(end)), usual)


def how_to_load(name: str, loading: Loading) -> str:
    """The section of a card that says how to load the model of this id."""
    parts = ["## Use\n"]
    if loading.is_own or loading.is_quantized:
        registers = "the architecture" if loading.is_own else "how the experts are quantised"
        parts += ["With `moe_hf`:\n", _code(name, loading, [f"import moe_hf  # registers {registers}"])]
    if loading.is_quantized:
        parts.append(
            "Don't load it without `moe_hf`: transformers does not know by itself how the experts are quantised. Where "
            "it can build the model at all, it warns and leaves them random.\n"
        )
    elif loading.has_code:
        parts += [
            f"Without {'`moe_hf`' if loading.is_own else 'another package'}: the Python files of this repository "
            f"define the model.{_PART if loading.is_own else ''} Read them; `trust_remote_code=True` lets transformers "
            "run them:\n",
            _code(name, loading, [], ", trust_remote_code=True"),
        ]
    elif loading.is_own:
        parts.append(
            f"Without `moe_hf` it cannot be loaded: transformers has no model of the type `{loading.model_type}`, and "
            "this repository holds no code.\n"
        )
    else:
        parts += [
            "The model's class is one of transformers' own, so nothing else is needed:\n",
            _code(name, loading, []),
        ]
    if loading.auto_class == "AutoModelForCausalLM" and loading.has_tokenizer is not False:
        parts.append(f"To chat, with `moe_hf` installed: `moe-hf chat --model {name}`\n")
    return "\n".join(parts)


def _code(name: str, loading: Loading, first: list[str], options: str = "") -> str:
    known = loading.has_tokenizer
    tokenizer = [] if known is False else ["AutoTokenizer"]
    lines = [*first, f"from transformers import {', '.join([loading.auto_class, *tokenizer])}", ""]
    if tokenizer:
        note = "" if known else "  # where this repository has a tokenizer"
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{name}"{options}){note}')
    lines.append(f'model = {loading.auto_class}.from_pretrained("{name}"{options})')
    return "```python\n" + "\n".join(lines) + "\n```\n"
