"""How each size is trained when nothing else is said: a written-out table of flags."""

from collections.abc import Mapping
from typing import Any

from moe_hf.base.registry import Registry

# Minutes on two CPU cores: one pass over the embedded corpus, short conversations first.
_TINY: dict[str, Any] = {
    "tokenizer": "word",
    "vocab_size": 1024,
    "num_conversations": 72_000,
    "packing": "document_mask",
    # A little of the questions as well: they teach the words before the answers do.
    "prompt_loss_fraction": 0.1,
    "context_length": 256,
    "optim": "moe_muon",
    "learning_rate": 0.02,
    "muon_learning_rate": 0.02,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "linear",
    # Below 1 it is a share of all steps.
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 6,
    "num_train_epochs": 1,
    # Trainer would shuffle; the corpus comes in the order in which it is best learnt.
    "train_sampling_strategy": "sequential",
    "logging_steps": 25,
    "save_steps": 250,
    "save_total_limit": 2,
    "eval_strategy": "no",
    "seed": 0,
}


# MegaByte reads bytes, about two of which are a token of the word tokenizer: as much text per step.
_TINY_MEGABYTE: dict[str, Any] = {"context_length": 1024, "per_device_train_batch_size": 3}


def _large(learning_rate: float, batch: int, accumulation: int, steps: int) -> dict[str, Any]:
    return {
        "tokenizer": "bpe",
        # GPT-2's, so that the parameter counts are those of the name and `--tokenizer gpt2` fits.
        "vocab_size": 50257,
        "packing": "document_mask",
        "optim": "adamw_torch_fused",
        "learning_rate": learning_rate,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 500,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "logging_steps": 10,
        "save_steps": 500,
        "save_total_limit": 3,
        "eval_strategy": "steps",
        "eval_steps": 500,
        "seed": 0,
    }


# Batches of about half a million tokens; 20 tokens per active parameter (Hoffmann et al. 2022).
RECIPES: Registry[Mapping[str, Any]] = Registry(
    "moe_size",
    {
        "tiny": _TINY,
        "500m": _large(6e-4, batch=16, accumulation=32, steps=7_200),
        "1b": _large(4e-4, batch=8, accumulation=64, steps=14_500),
        "2b": _large(3e-4, batch=4, accumulation=64, steps=26_000),
        "500m-active": _large(4e-4, batch=8, accumulation=64, steps=18_500),
        "1b-active": _large(3e-4, batch=4, accumulation=128, steps=37_600),
        "2b-active": _large(2e-4, batch=2, accumulation=128, steps=75_800),
    },
)

# Short and gentle: the weights are already good.
CONTINUE_RECIPE: Mapping[str, Any] = {
    "packing": "document_mask",
    "optim": "adamw_torch_fused",
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "logging_steps": 10,
    "save_steps": 250,
    "save_total_limit": 2,
    "eval_strategy": "no",
    "seed": 0,
}

_BELONGS_TO_OPTIMIZER = ("learning_rate", "weight_decay", "adam_beta2", "muon_learning_rate")


def training_recipe(given: Mapping[str, Any], has_bf16: bool = False) -> dict[str, Any]:
    """The flags that stand where the user gave none.

    A starting model (`model` or `upcycle`) has its own recipe, otherwise `moe_size` decides, and MegaByte reads bytes.
    What a given flag makes wrong is left out: the number of steps beside a number of epochs, and what was tuned for
    another optimizer.

    Args:
        given: what the user chose, by flag name.
        has_bf16: whether the accelerator computes in bfloat16, which all but the tiny size then use.

    Raises:
        ConfigError: unknown `moe_size`.
    """
    continued = given.get("model") or given.get("upcycle")
    recipe = dict(CONTINUE_RECIPE if continued else RECIPES[given.get("moe_size", "tiny")])
    if not continued and given.get("architecture") == "megabyte":
        recipe |= {"tokenizer": "byte", "vocab_size": None}
        if given.get("moe_size", "tiny") == "tiny":
            recipe |= _TINY_MEGABYTE
    if has_bf16 and (continued or given.get("moe_size", "tiny") != "tiny") and not given.get("fp16"):
        recipe["bf16"] = True
    if "num_train_epochs" in given:
        recipe.pop("max_steps", None)
    if given.get("optim", recipe["optim"]) != recipe["optim"]:
        for name in _BELONGS_TO_OPTIMIZER:
            recipe.pop(name, None)
        recipe["learning_rate"] = 1e-3
    return recipe
