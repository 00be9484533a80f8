"""Writes a model's directory from another's, mostly an MoE from a dense one: one tensor at a time, and atomically."""

import os
from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging

from moe_hf.base.destination import require_free_folder, require_space
from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.base.files import atomic_folder
from moe_hf.base.tokenizer_source import TOKENIZER_FILES
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.auto import dense_model_types, family_of_dense
from moe_hf.models.cards.card import CARD_FILE
from moe_hf.models.dense.lazy_tensors import Drawn, Held, dtype_named
from moe_hf.models.upcycling.branches import mixed_plan
from moe_hf.models.upcycling.companions import carry_over
from moe_hf.models.upcycling.grown import GROWING, plan_grown
from moe_hf.models.upcycling.merged import KeptExperts, plan_merged
from moe_hf.models.upcycling.model_card import model_card
from moe_hf.models.upcycling.native import plan_native
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS, cannot_upcycle
from moe_hf.models.upcycling.opened import OpenedModel, open_model
from moe_hf.models.upcycling.own import plan_own
from moe_hf.models.upcycling.planned import ParameterCounts, PlannedModel
from moe_hf.models.upcycling.weights import require_shard_size, write_weights, written_size

logger = logging.get_logger(__name__)

# Bytes of a row of an expert, a multiple of which torch's grouped product asks for.
_STRIDE = 16

TARGETS = {"native": plan_native, "moe_hf": plan_own, "dense": plan_merged}
"""What is made: a Mixture of Experts of transformers' own classes or of this package's, or a dense model of one."""


class UpcycleReport(NamedTuple):
    """What was written, and where."""

    folder: Path
    config: PreTrainedConfig
    counts: ParameterCounts
    weight_bytes: int
    num_shards: int
    carried: list[str]


def upcycle_directory(
    source: str,
    destination: str | Path,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
    target: str | None = None,
    gguf_file: str | None = None,
    granularity: int = 1,
    branches: Sequence[str] = (),
    kept_experts: KeptExperts | Callable[[], KeptExperts] | None = None,
    **overrides: Any,
) -> UpcycleReport:
    """Turn the dense model of `source` into a Mixture of Experts in the new folder `destination`.

    A source that is a Mixture of Experts itself gets more experts (see `plan_grown`).

    No more than one tensor is in memory at a time, but of a `.gguf` file, which transformers reads whole. Tokenizer
    and generation settings are carried over.

    Args:
        source: a folder, a Hub id, a `.gguf` file, or a model of an installed package, such as smollm2.
        destination: must not exist, or be empty, unless `overwrite`.
        dtype: type of the written weights; None keeps the source's. The states of routers keep their own.
        max_shard_size: largest size of a weights file, such as "2GB"; one tensor is never split.
        overwrite: replace `destination`, which must be a model's folder, once the new one is complete.
        on_shard: called with (shards done, shards in all).
        target: "native" for a class that transformers has itself, which every other software reads, "moe_hf" for a
            family of this package; None takes the first that starts from such a model. "dense" makes a dense model of
            a Mixture of Experts (see `plan_merged`).
        gguf_file: the file of the source that holds the weights, where it is no safetensors.
        granularity: slices that each version of an FFN is cut into, an expert each. `num_experts` and
            `num_experts_per_tok` count slices then, and it divides both.
        branches: more fine-tunes of the same dense model, each of which gives as many experts as `source` does; the
            other weights are the mean of all. `num_experts` is their number then unless it is given.
        kept_experts: with target "dense", the ids of the experts that stay, for each decoder layer with experts, or a
            function that gives them, which is called when all else is checked.
        **overrides: fields of the configuration, such as `num_experts`.

    Raises:
        CheckpointError: the source is no complete dense model that can be upcycled, the destination is taken, or the
            disk is too small. Nothing is written then.
        ConfigError: an override is not allowed.
    """
    # Named as it was given; "." has no name of its own.
    given = Path(os.path.expanduser(destination))
    destination = given.absolute()
    _require_target(target, branches, kept_experts)
    if kept_experts is not None:
        overrides["kept_experts"] = kept_experts
    require_shard_size(max_shard_size)
    models = [open_model(source, gguf_file), *map(open_model, branches)]
    for model in models:
        if model.folder.resolve().is_relative_to(destination.resolve()):
            raise CheckpointError(
                f"{destination} holds the source {model.name}, which would be lost; choose another folder"
            )
    require_free_folder(destination, overwrite)
    plan = _plan_of(models, target, dtype, granularity, overrides)
    config = plan.config
    config.dtype = dtype or _dtype_of(plan)
    note = _odd_widths(plan, config.dtype)
    if note:
        logger.warning(note)
    total = sum(written_size(value, config.dtype) for value in plan.state.values())

    with atomic_folder(destination, partial(require_free_folder, destination, overwrite)) as aside:
        # Here what a killed run left behind is gone.
        require_space(destination, total, "fewer experts, half precision, or another disk")
        num_shards = write_weights(plan.state, aside, config.dtype, max_shard_size, on_shard)
        config.save_pretrained(aside)
        carried = carry_over(models[0], aside)
        has_tokenizer = any(name in TOKENIZER_FILES for name in carried)
        card = model_card(source, destination.name, plan, note, has_tokenizer)
        (aside / CARD_FILE).write_text(card, encoding="utf-8")
    return UpcycleReport(given, config, plan.counts, total, num_shards, carried)


def _require_target(target: str | None, branches: Sequence[str], kept_experts: object) -> None:
    """Refuse a target that is none, and what means nothing with it."""
    if target not in (None, *TARGETS):
        raise ConfigError(f"target={target!r} is not allowed; it must be {' or '.join(TARGETS)}")
    if branches and target == "dense":
        raise ConfigError(f"branches={list(branches)!r} has no meaning with target='dense', which merges one model")
    if kept_experts is not None and target != "dense":
        raise ConfigError(f"kept_experts={kept_experts!r} has no meaning with target={target!r}, only with 'dense'")


def _plan_of(
    models: Sequence[OpenedModel],
    target: str | None,
    dtype: torch.dtype | None,
    granularity: int,
    overrides: dict[str, Any],
) -> PlannedModel:
    """The model to write, of the first of some models and its branches."""
    first, *branches = models
    make_plan = _maker(first.name, first.model_type, target)
    if not branches:
        return make_plan(first, dtype, granularity, **overrides)
    overrides = {"num_experts": len(models) * granularity, **overrides}
    plans = [make_plan(model, dtype, granularity, **overrides) for model in models]
    return mixed_plan(plans, [model.name for model in models], granularity)


def _maker(source: str, model_type: str, target: str | None) -> Callable[..., PlannedModel]:
    """What plans the model to write: the target asked for, or the first that starts from models of this type.

    Raises:
        CheckpointError: none does.
        ConfigError: a Mixture of Experts stays of its class.
    """
    if target == "dense":
        return plan_merged
    if model_type in GROWING:
        if target is not None:
            raise ConfigError(f"target={target!r} is not allowed: {source} is a {model_type} already, and stays one")
        return plan_grown
    if target == "native" and model_type not in NATIVE_FORMATS:
        raise cannot_upcycle(source, model_type, ())
    if target is not None:
        return TARGETS[target]
    if model_type in NATIVE_FORMATS:
        return plan_native
    if family_of_dense(model_type) is not None:
        return plan_own
    raise cannot_upcycle(source, model_type, dense_model_types())


def _odd_widths(plan: PlannedModel, dtype: torch.dtype) -> str:
    """What users must know of experts whose width transformers' grouped product does not take; empty otherwise."""
    config: Any = plan.config
    widths = {config.hidden_size, getattr(config, "moe_intermediate_size", None) or config.intermediate_size}
    odd = sorted(width for width in widths if width * dtype.itemsize % _STRIDE)
    if isinstance(config, MoEDecoderConfig) or not plan.wanted.sparse_layers or not odd:
        return ""
    kind = str(dtype).removeprefix("torch.")
    return (
        f"Widths of {', '.join(map(str, odd))} in {kind} are no multiples of {_STRIDE} bytes, which transformers' "
        'usual product of experts needs: load it with `experts_implementation="eager"`, or with `moe_hf`\'s `sorted`.'
    )


def _dtype_of(plan: PlannedModel) -> torch.dtype:
    """The type that holds the values of all tensors of the source; what is drawn has none of its own."""
    stored = [dtype_named(value.get_dtype()) for value in plan.state.values() if not isinstance(value, Drawn | Held)]
    return reduce(torch.promote_types, stored)
