"""Writes the README of an upcycled model: what it was made of, how, and whether it still computes the same."""

from moe_hf.base.model_source import PACKAGED_MODELS
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.models.cards.card import metadata_of, placeholder, size_rows, table, told_name, written_card
from moe_hf.models.cards.loading import Loading, how_to_load
from moe_hf.models.upcycling.planned import PlannedModel

_SAME_LOGITS = "It gives the source's logits; train it before you expect more."


def model_card(source: str, name: str, plan: PlannedModel, note: str = "", has_tokenizer: bool = True) -> str:
    """The README.md of an upcycled model.

    Args:
        source: what a person named as its source.
        name: of its folder.
        plan: of the model.
        note: what its users have to know besides.
        has_tokenizer: whether a tokenizer lies beside it.
    """
    is_sparse = bool(plan.wanted.sparse_layers)
    logits = f"It does not give the source's logits: {'; '.join(plan.changes)}." if plan.changes else _SAME_LOGITS
    config = plan.config
    loading = Loading(config.model_type, isinstance(config, MoEDecoderConfig), has_tokenizer=has_tokenizer)
    origin = f"{plan.origin} `{told_name(source)}`"
    base_model = None if source in PACKAGED_MODELS else source
    return written_card(
        placeholder(name),
        metadata_of(["upcycled"], is_sparse, base_model=base_model),
        [
            f"# {name}",
            f"{origin}. It has\nnot been trained since. {logits}{f' {note}' if note else ''}",
            table(_rows(plan, is_sparse)),
            how_to_load(placeholder(name), loading),
        ],
    )


def _rows(plan: PlannedModel, is_sparse: bool) -> list[tuple[str, str]]:
    wanted, counts = plan.wanted, plan.counts
    sparse = len(wanted.sparse_layers)
    dense = wanted.num_hidden_layers - sparse
    sizes = size_rows(counts.total, counts.active, wanted.num_experts, wanted.num_experts_per_tok, sparse, dense)
    how = f"{wanted.expert_init}, {wanted.router_init}, {wanted.expert_init_seed}"
    return [
        *sizes,
        ("parameters of the source", f"{counts.source:,}"),
        *([("expert_init, router_init, seed", how)] if is_sparse else []),
        ("type", str(plan.config.dtype).removeprefix("torch.")),
    ]
