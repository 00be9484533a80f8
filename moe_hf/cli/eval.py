"""`moe-hf eval`: perplexity and bits per byte of models on somebody's text, with intervals, by domain, side by side."""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import datasets
from rich.table import Table
from rich.text import Text
from transformers.utils import logging

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.base.model_source import find_model
from moe_hf.base.printable import json_line, one_line
from moe_hf.cli.screen import Screen
from moe_hf.inference.scoring import (
    DocumentScore,
    Interval,
    bits_per_byte,
    difference_in_bits,
    nats_per_token,
    score_document,
)
from moe_hf.inference.settings import DEVICES, DTYPES
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.training.data.arguments import DataArguments
from moe_hf.training.data.documents import DocumentEncoder, require_chat_template
from moe_hf.training.data.rows import Row, short
from moe_hf.training.data.scored import ScoredDocument, rows_to_score, scored_document

_MOST = 10**9
# Of the table: as wide as a terminal is at least.
_WIDTH, _DOMAIN_WIDTH = 80, 16


def main(argv: list[str] | None = None, prog: str = "moe-hf eval") -> int:
    """Score the documents and print the table; returns the exit code."""
    args = _parser(prog).parse_args(argv)
    for name, least in (("limit", 1), ("context_length", 2)):
        given = getattr(args, name)
        if given is not None and not least <= given <= _MOST:
            raise ConfigError(f"--{name}={given} is not allowed; it must be {least} to {_MOST}")
    if args.compare == args.model:
        raise ConfigError(f"--compare {args.compare} is the same model; name another")
    models = [args.model, *([args.compare] if args.compare else [])]
    for name in models:
        # Before minutes are spent on the first.
        find_model(name)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    arguments = DataArguments(
        data=args.data,
        data_split=args.data_split,
        text_column=args.text_column,
        messages_column=args.messages_column,
        text_unit=args.text_unit,
    )
    rows = rows_to_score(arguments, args.limit)
    # Progress goes to stderr: stdout holds the result alone.
    console = Screen(stderr=True, soft_wrap=True)
    scored = {name: _scores(name, rows, args, console) for name in models}
    report = _report(scored, args)
    if args.json:
        Screen(soft_wrap=True).print(json_line(report))
        return 0
    screen = Screen(soft_wrap=True)
    # A narrow terminal breaks lines; it loses no number.
    screen.width = max(screen.width, _WIDTH)
    screen.print(_table(report))
    if len(rows) == 1 and rows[0].kind == "text":
        console.print("one document has no interval; --text_unit paragraph makes several of a text file")
    if args.compare:
        Screen(soft_wrap=True).print(_verdict(Interval(**report["difference"]), *models))
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Perplexity and bits per byte of a model on held-out text: of plain text every token counts, of "
        "conversations what the assistant says. Intervals hold 95% of 2,000 resamples of the documents.",
    )
    parser.add_argument("model", help="a folder, a Hub id, a .gguf file or a packaged model")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="NAME",
        help="files (.txt .jsonl .csv .parquet), globs, folders, data sets of the hub, or embedded (the questions that "
        "the embedded corpus holds out); a file's column `domain` says what a row is about, else it is its file",
    )
    parser.add_argument("--compare", metavar="MODEL", help="a second model, on the same documents")
    parser.add_argument("--limit", type=int, metavar="N", help="of each name of --data no more than N documents")
    parser.add_argument("--context_length", type=int, metavar="N", help="tokens of a window (default: up to 1024)")
    parser.add_argument("--data_split", default="test", help="of data sets of the hub (default: %(default)s)")
    parser.add_argument("--text_column", default="text", help="column with plain text (default: %(default)s)")
    parser.add_argument("--messages_column", default="messages", help="column with conversations (%(default)s)")
    parser.add_argument(
        "--text_unit", default="file", choices=("file", "paragraph", "line"), help="what a document of a .txt file is"
    )
    parser.add_argument("--device", default="auto", choices=DEVICES, help="where it runs (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="type of the weights (default: as stored)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _scores(
    name: str, rows: Sequence[Row], args: argparse.Namespace, console: Screen
) -> list[tuple[str, DocumentScore]]:
    talker = CausalTextModel.load(name, device=args.device, dtype=args.dtype)
    kinds = {row.kind for row in rows}
    for kind in kinds:
        require_chat_template(kind, talker.tokenizer, f"--data {' '.join(args.data)}")
    encoders = {kind: DocumentEncoder(talker.tokenizer, kind, sys.maxsize) for kind in kinds}
    end = {talker.tokenizer.bos_token_id, talker.tokenizer.eos_token_id, talker.tokenizer.pad_token_id}
    scores, unknown, empty = [], 0, 0
    # Texts, not strings, in which rich would look for markup.
    with console.status(Text(f"{name}: 0 of {len(rows)} documents")) as status:
        for done, row in enumerate(rows, start=1):
            document: ScoredDocument = scored_document(row, talker.tokenizer, encoders[row.kind])
            if not document.num_bytes:
                empty += 1
                continue
            score = score_document(talker, document.input_ids, document.labels, document.num_bytes, args.context_length)
            if not math.isfinite(score.nats):
                raise CheckpointError(
                    f"{name} gives {row.place} a cross-entropy of {score.nats}; its weights are broken"
                )
            scores.append((document.domain, score))
            if talker.tokenizer.unk_token_id not in end:
                unknown += document.labels.count(talker.tokenizer.unk_token_id)
            status.update(Text(f"{name}: {done} of {len(rows)} documents"))
    if empty:
        console.print(f"{name}: {empty:,} documents without text that counts are left out")
    if not any(score.tokens for _, score in scores):
        raise ConfigError(f"nothing in --data {' '.join(args.data)} can be scored; name texts of two tokens or more")
    if unknown:
        console.print(
            f"{name}: {unknown:,} tokens stand for text that the tokenizer does not know; what they hide costs "
            "nothing, so bits per byte look better than they are"
        )
    return scores


def _report(scored: dict[str, list[tuple[str, DocumentScore]]], args: argparse.Namespace) -> dict[str, Any]:
    names = list(scored)
    domains = dict.fromkeys(domain for domain, _ in scored[names[0]])
    rows = []
    for domain in [*(domains if len(domains) > 1 else ()), None]:
        for name in names:
            chosen = [score for other, score in scored[name] if domain in (other, None)]
            row: dict[str, Any] = {"model": name, "domain": domain, "documents": len(chosen)}
            row |= {what: sum(getattr(score, what) for score in chosen) for what in ("tokens", "num_bytes")}
            nats, bits = nats_per_token(chosen), bits_per_byte(chosen)
            row |= {"nats_per_token": nats._asdict(), "bits_per_byte": bits._asdict()}
            rows.append(row | {"perplexity": math.exp(min(nats.value, 700.0))})
    report: dict[str, Any] = {"scores": rows}
    if len(names) > 1:
        first, second = ([score for _, score in scored[name]] for name in names)
        report["difference"] = difference_in_bits(first, second)._asdict()
    return report


def _table(report: dict[str, Any]) -> Table:
    names = list(dict.fromkeys(row["model"] for row in report["scores"]))
    letters = {name: chr(ord("A") + index) for index, name in enumerate(names)}
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    headers = ["domain", *([""] if len(names) > 1 else []), "docs", "tokens", "nats/token", "perplexity"]
    for header in (*headers, "bits/byte", "95%"):
        table.add_column(header, justify="left" if header in ("domain", "") else "right", no_wrap=True)
    for row in report["scores"]:
        bits = Interval(**row["bits_per_byte"])
        table.add_row(
            short(one_line(row["domain"] or "all"), _DOMAIN_WIDTH),
            *([letters[row["model"]]] if len(names) > 1 else []),
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            f"{row['nats_per_token']['value']:.3f}",
            f"{row['perplexity']:.4g}",
            f"{bits.value:.3f}",
            _ends(bits) or "one document",
        )
    return table


def _ends(interval: Interval) -> str:
    return "" if interval.low is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _verdict(difference: Interval, first: str, second: str) -> str:
    """What the difference of two models says."""
    models = f"A = {first}, B = {second}"
    if difference.low is None or difference.high is None:
        return f"{models}; A - B = {difference.value:+.4f} bits per byte on one document, which says little"
    said = f"A - B = {difference.value:+.4f} bits per byte ({difference.low:+.4f} to {difference.high:+.4f})"
    if difference.high < 0:
        return f"{models}; A is better: {said}"
    if difference.low > 0:
        return f"{models}; B is better: {said}"
    return f"{models}; they cannot be told apart on these documents: {said}"
