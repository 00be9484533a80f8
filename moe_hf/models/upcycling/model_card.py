"""Writes the README of an upcycled model: what it was made of, how, and whether it still computes the same."""

from pathlib import Path

from moe_hf.base.model_source import PACKAGED_MODELS
from moe_hf.models.upcycling.planned import PlannedModel

_SAME_LOGITS = "It gives the source's logits; train it before you expect more."


def model_card(source: str, name: str, plan: PlannedModel, note: str = "") -> str:
    """The README.md of an upcycled model; `note` is what its users have to know besides."""
    base_model = "" if Path(source).exists() or source in PACKAGED_MODELS else f"base_model: {source}\n"
    wanted, counts = plan.wanted, plan.counts
    logits = f"It does not give the source's logits: {'; '.join(plan.changes)}." if plan.changes else _SAME_LOGITS
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
{"- mixture-of-experts" if wanted.sparse_layers else "- dense"}
- moe_hf
{base_model}---

# {name}

{plan.origin} `{Path(source).name if Path(source).exists() else source}`. It has
not been trained since. {logits}{f" {note}" if note else ""}

| | |
| --- | --- |
| parameters, total | {counts.total / 1e6:.1f}M |
| parameters of the source | {counts.source / 1e6:.1f}M |
{_experts(plan) if wanted.sparse_layers else ""}| type | {str(plan.config.dtype).removeprefix("torch.")} |

```python
{plan.code}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""


def _experts(plan: PlannedModel) -> str:
    wanted = plan.wanted
    return f"""| parameters, active per token | {plan.counts.active / 1e6:.1f}M |
| sparse layers | {len(wanted.sparse_layers)} of {wanted.num_hidden_layers} |
| experts, per token | {wanted.num_experts}, {wanted.num_experts_per_tok} |
| expert_init, router_init, seed | {wanted.expert_init}, {wanted.router_init}, {wanted.expert_init_seed} |
"""
