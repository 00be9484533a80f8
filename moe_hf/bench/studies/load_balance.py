"""Measures how evenly a trained model's experts are used, per sparse layer and per domain of held-out text.

`python -m moe_hf.bench.studies.load_balance --model FOLDER --output_dir docs` sends held-out conversations of
the embedded corpus through the model; `--runs FOLDER ...` compares the routers of several training runs.
Both fill their tables on the page `load_balance.md` in the output folder.

Shapes: B batch, S positions, E experts, K experts per token, L sparse layers, C conversations.
"""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.harness.tables import fill_page
from moe_hf.bench.studies.load_balance_report import (
    domain_table,
    draw_pictures,
    floor_table,
    layer_table,
    runs_table,
)
from moe_hf.bench.studies.script import parsed, run_study
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS
from moe_hf.models.heads import MoEForCausalLM
from moe_hf.ops.routing.load_statistics import load_statistics
from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.text.skills import SKILLS

MODULE = "moe_hf.bench.studies.load_balance"
logger = logging.getLogger(__name__)

PAGE = "load_balance.md"
_GROWTH_POINTS = 14
# Where a run's model card has the share of held-out questions that were answered exactly.
_SCORE = re.compile(r"held-out questions \| ([0-9.]+)% exact match")
# (tokens, experts per token, experts); the first are the example and the threshold that the page speaks of.
_FLOOR_SIZES = ((2048, 2, 16), (8334, 2, 16), (2048, 1, 8), (2048, 4, 8), (512, 2, 64))


class HeldOutConversation(NamedTuple):
    """The token ids of one held-out question with its answer, and the domain that it belongs to."""

    skill: str
    sort: str
    ids: list[int]


class Slots(NamedTuple):
    """Slots per expert of each conversation (C, L, E) int64, and the dropped share per layer; None without a limit."""

    count_CLE: torch.Tensor
    dropped: list[float | None]


def heldout_conversations(
    tokenizer: PreTrainedTokenizerBase, per_skill: int, context_length: int
) -> list[HeldOutConversation]:
    """Questions that no training conversation holds, with their answers; those that do not fit are left out.

    Raises:
        CheckpointError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise CheckpointError(
            f"the model's tokenizer {tokenizer.name_or_path!r} has no chat template, and the held-out text consists of "
            "conversations; give a model that train.py made"
        )
    sorts: dict[str, str] = {skill.name: skill.sort for skill in SKILLS}
    found = []
    for question in EmbeddedCorpus().heldout_questions(per_skill):
        messages = [{"role": message["role"], "content": message["content"]} for message in question.messages]
        messages.append({"role": "assistant", "content": question.answer})
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= context_length:
            found.append(HeldOutConversation(question.skill, sorts[question.skill], ids))
    return found


@torch.no_grad()
def count_slots(model: MoEForCausalLM, conversations: Sequence[HeldOutConversation], batch_size: int) -> Slots:
    """How often each expert is chosen, in eval mode, by every conversation's tokens; padding counts for nobody."""
    model.eval()
    config: Any = model.config
    num_layers = len(config.router_of_sparse_layer)
    count_CLE = torch.zeros(len(conversations), num_layers, config.num_experts, dtype=torch.long)
    lost_L = torch.zeros(num_layers)
    has_limit = False
    # Like lengths together, so that little is padding.
    order = sorted(range(len(conversations)), key=lambda index: len(conversations[index].ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids_BS, mask_BS = (part.to(model.device) for part in _padded([conversations[row].ids for row in rows]))
        # Of the head as little as can be: only the routing is looked at.
        outputs = model(
            input_ids=ids_BS, attention_mask=mask_BS, use_cache=False, output_router_logits=True, logits_to_keep=1
        )
        for layer, expert_TK in enumerate(outputs.router_experts):
            # Padding gets the id of an empty slot, whose count is cut off below.
            expert_BSK = expert_TK.view(*ids_BS.shape, -1).masked_fill(mask_BS[..., None] == 0, config.num_experts)
            slot_BN = expert_BSK.flatten(1)
            count_BE = slot_BN.new_zeros(len(rows), config.num_experts + 1)
            count_CLE[rows, layer] = count_BE.scatter_add(1, slot_BN, torch.ones_like(slot_BN))[:, :-1].cpu()
        if outputs.router_dropped:
            has_limit = True
            share_L = torch.stack([share.float().cpu() for share in outputs.router_dropped])
            # Batches have unequal numbers of slots, by which their shares count.
            lost_L += share_L * count_CLE[rows].sum(dim=(0, 2))
    dropped = (lost_L / count_CLE.sum(dim=(0, 2)).clamp(min=1)).tolist()
    # Experts that pick their tokens have no limit to drop by.
    limited = [has_limit and kind != "expert_choice" for kind in config.router_of_sparse_layer]
    return Slots(count_CLE, [share if limits else None for share, limits in zip(dropped, limited, strict=True)])


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        ids_BS[index, : len(row)] = torch.tensor(row)
        mask_BS[index, : len(row)] = 1
    return ids_BS, mask_BS


def measure_model(folder: Path, per_skill: int, batch_size: int) -> dict[str, Any]:
    """Everything measured of one model, as what a JSON file can hold.

    Args:
        folder: of a trained model, with tokenizer.
        per_skill: held-out questions of each skill.
        batch_size: conversations of one forward.

    Returns:
        `layers` for all text; `domains` for each sort and skill, with `distance`, the total variation between the
        domain's loads and those of all text (0 to 1), and `chance_distance`, what as many slots of all text would
        show; `growth` of the relative std with the number of tokens; `floor_check`, the floor against a simulation.

    Raises:
        CheckpointError: the model has no sparse layer, or is not one of this package's.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    if not isinstance(config, MoEDecoderConfig) or not config.sparse_layers:
        raise CheckpointError(f"{folder} holds {type(model).__name__} without experts; give a folder of a trained MoE")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = heldout_conversations(tokenizer, per_skill, config.max_position_embeddings)
    slots = count_slots(model, conversations, batch_size)
    tokens_C = torch.tensor([len(conversation.ids) for conversation in conversations])
    logger.info("%d held-out conversations, %d tokens", len(conversations), tokens_C.sum())
    experts_per_token = [_experts_per_token(config, kind) for kind in config.router_of_sparse_layer]
    whole = _layers(slots.count_CLE.sum(dim=0), experts_per_token)
    for layer, kind, dropped, statistics in zip(
        config.sparse_layers, config.router_of_sparse_layer, slots.dropped, whole, strict=True
    ):
        statistics.update(layer=layer, router=kind, dropped=dropped)
    return {
        "model": {
            "folder": folder.name,
            "router_type": config.router_type,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "router_balance_loss": config.router_balance_loss,
            "router_capacity_factor": config.router_capacity_factor,
            "router_eval_capacity_factor": config.router_eval_capacity_factor,
        },
        "machine": describe_machine(),
        "conversations": len(conversations),
        "tokens": int(tokens_C.sum()),
        "layers": whole,
        "domains": _domains(conversations, slots.count_CLE, tokens_C, experts_per_token, whole),
        "growth": _growth(slots.count_CLE, tokens_C, experts_per_token),
        "floor_check": [check_floor(*sizes) for sizes in _FLOOR_SIZES],
    }


def _experts_per_token(config: MoEDecoderConfig, kind: str) -> int:
    """K where every token has K different experts; 1, which means independent slots, where their number varies."""
    router = ROUTERS[kind]
    if router.leaves_slots_empty:
        return 1
    return router.from_config(config).num_experts_per_tok


def _layers(count_LE: torch.Tensor, experts_per_token: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {**load_statistics(count_E, k)._asdict(), "load": (count_E / count_E.sum().clamp(min=1)).tolist()}
        for count_E, k in zip(count_LE, experts_per_token, strict=True)
    ]


def _domains(
    conversations: Sequence[HeldOutConversation],
    count_CLE: torch.Tensor,
    tokens_C: torch.Tensor,
    experts_per_token: Sequence[int],
    whole: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    domains = []
    for sort in dict.fromkeys(conversation.sort for conversation in conversations):
        of_sort = torch.tensor([conversation.sort == sort for conversation in conversations])
        skills = dict.fromkeys(conversation.skill for conversation in conversations if conversation.sort == sort)
        parts = {sort: of_sort}
        for skill in skills:
            parts[skill] = torch.tensor([conversation.skill == skill for conversation in conversations])
        for name, chosen_C in parts.items():
            layers = _layers(count_CLE[chosen_C].sum(dim=0), experts_per_token)
            for layer, overall in zip(layers, whole, strict=True):
                load_E = torch.tensor(overall["load"])
                layer["distance"] = (torch.tensor(layer["load"]) - load_E).abs().sum().item() / 2
                spread_E = (load_E * (1 - load_E) / max(1, layer["num_slots"])).sqrt()
                # The mean of a normal variable's absolute value.
                layer["chance_distance"] = math.sqrt(2 / math.pi) * spread_E.sum().item() / 2
            kind = "sort" if name == sort else "skill"
            tokens = int(tokens_C[chosen_C].sum())
            domains.append({"name": name, "kind": kind, "sort": sort, "tokens": tokens, "layers": layers})
    return domains


def _growth(count_CLE: torch.Tensor, tokens_C: torch.Tensor, experts_per_token: Sequence[int]) -> dict[str, Any]:
    """Relative std and floor of each layer over the first conversations of a random order, from few to all."""
    order_C = torch.randperm(len(tokens_C), generator=torch.Generator().manual_seed(0))
    count_CLE, tokens_C = count_CLE[order_C].cumsum(dim=0), tokens_C[order_C].cumsum(dim=0)
    ends = torch.logspace(0, torch.tensor(len(tokens_C)).log10().item(), _GROWTH_POINTS).round().long().unique()
    rows = [_layers(count_CLE[end - 1], experts_per_token) for end in ends.tolist()]
    return {
        "tokens": tokens_C[ends - 1].tolist(),
        "relative_std": [[layer["relative_std"] for layer in row] for row in rows],
        "sampling_floor": [[layer["sampling_floor"] for layer in row] for row in rows],
    }


def check_floor(num_tokens: int, k: int, num_experts: int, repeats: int = 200, seed: int = 0) -> dict[str, Any]:
    """Formula against simulation of uniform random routing, for slots drawn one by one and for K different ones.

    Returns:
        The sizes; `formula`, the root mean square of the relative std; `simulated`, the same of `repeats` draws, and
        `simulated_mean`, their plain mean, which is a little less.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[torch.Tensor]] = {"independent": [], "different": []}
    for _ in range(repeats):
        drawn["independent"].append(torch.randint(num_experts, (num_tokens * k,), generator=generator))
        score_TE = torch.rand(num_tokens, num_experts, generator=generator)
        drawn["different"].append(score_TE.topk(k, dim=-1).indices.flatten())
    result: dict[str, Any] = {"tokens": num_tokens, "k": k, "num_experts": num_experts}
    for name, experts_per_token in (("independent", 1), ("different", k)):
        statistics = [load_statistics(torch.bincount(d, minlength=num_experts), experts_per_token) for d in drawn[name]]
        std = torch.tensor([each.relative_std for each in statistics])
        result[name] = {
            "formula": statistics[0].sampling_floor,
            "simulated": std.square().mean().sqrt().item(),
            "simulated_mean": std.mean().item(),
        }
    return result


def compare_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each run; values that a run did not log are None.

    Raises:
        CheckpointError: a folder has no `config.json`, or its `metrics.jsonl` has no line about routers.
    """
    return [_run_row(folder) for folder in folders]


def _run_row(folder: Path) -> dict[str, Any]:
    metrics, config_file, readme = folder / "metrics.jsonl", folder / "config.json", folder / "README.md"
    if not config_file.is_file() or not metrics.is_file():
        raise CheckpointError(f"{folder} has no config.json or no metrics.jsonl; give the folder of a finished run")
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    windows = [record for record in records if "layers" in record]
    if not windows:
        raise CheckpointError(f"{metrics} says nothing about routers; give the run of a mixture of experts")
    config: Any = AutoConfig.from_pretrained(folder)
    last = windows[-1]
    taught = config.router_aux_loss_coef > 0 and ROUTERS[config.router_type].balanced_by_loss
    score = _SCORE.search(readme.read_text(encoding="utf-8")) if readme.is_file() else None
    return {
        "run": folder.name,
        "router": config.router_type,
        "balance_loss": config.router_balance_loss if taught else None,
        "capacity_factor": config.router_capacity_factor,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "step": last["step"],
        "load_max": last["layers"]["load_max"],
        "dead_experts": last["layers"]["dead_experts"],
        "entropy": last["layers"]["entropy"],
        "dropped": last["layers"].get("dropped") if config.router_capacity_factor else None,
        "heldout_score": float(score[1]) / 100 if score else None,
        "heldout_loss": _last(records, "eval_loss"),
        "tokens_per_second": _last(records, "tokens_per_second"),
    }


def _last(records: Sequence[dict[str, Any]], name: str) -> float | None:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


@dataclass
class Arguments:
    """What is measured, and where the numbers go."""

    output_dir: Path = field(metadata={"help": "folder to write data/ and images/ into"})
    model: Path | None = field(default=None, metadata={"help": "folder of a trained model whose experts are counted"})
    runs: list[Path] | None = field(
        default=None, metadata={"help": "folders of training runs whose routers are compared"}
    )
    questions_per_skill: int = field(default=40, metadata={"help": "held-out questions of each skill"})
    batch_size: int = field(default=32, metadata={"help": "conversations of one forward"})


def main(words: Sequence[str] | None = None) -> None:
    """Measure a model, compare runs, or both; writes `data/`, `images/` and the page's tables under `--output_dir`.

    Raises:
        ConfigError: neither `--model` nor `--runs` was given.
    """
    (given,) = parsed([Arguments], words, MODULE, __doc__)
    if given.model is None and given.runs is None:
        raise ConfigError(
            f"model={given.model} and runs={given.runs} leave nothing to measure; give --model FOLDER, "
            "--runs FOLDER ..., or both"
        )
    page, data = given.output_dir / PAGE, given.output_dir / "data"
    if given.model is not None:
        result = measure_model(given.model, given.questions_per_skill, given.batch_size)
        write_json(result, data / "load_balance.json")
        draw_pictures(result, given.output_dir / "images")
        tables = {"layers": layer_table(result), "domains": domain_table(result), "floor": floor_table(result)}
        for name, table in tables.items():
            fill_page(page, name, table)
    if given.runs is not None:
        runs = compare_runs(given.runs)
        write_json(runs, data / "load_balance_runs.json")
        fill_page(page, "runs", runs_table(runs))


if __name__ == "__main__":
    run_study(main, MODULE)
