"""`moe-hf list`: shows the models of this machine."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from rich.table import Table

from moe_hf.base.printable import printable
from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.inference.local_models import LocalModel, half_removed, local_models


def main(argv: list[str] | None = None, prog: str = "moe-hf list") -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Lists the models of this machine: trained runs, and what the Hub's cache holds."
    )
    parser.add_argument(
        "--runs_dir", type=Path, default=Path("runs"), help="where training puts its runs (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args(argv)
    models = local_models(args.runs_dir)
    for folder in half_removed(args.runs_dir):
        print(f"half removed: {printable(str(folder))}; the next moe-hf rm ends that, or rm -r", file=sys.stderr)
    console = Screen(soft_wrap=True)
    if args.json:
        console.print_json(data=[model.record for model in models])
    elif models:
        console.print(_table(models))
    else:
        console.print(f"no model under {args.runs_dir}/, none in the Hub's cache; python train.py trains one")
    return 0


def _table(models: list[LocalModel]) -> Table:
    table = Table()
    # Whoever copies a name needs all of it.
    table.add_column("name", overflow="fold")
    table.add_column("family", no_wrap=True)
    for column in ("parameters", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("written", "place"):
        table.add_column(column, no_wrap=True)
    for model in models:
        count = "?" if model.parameters is None else f"{model.parameters:,}"
        written = "?" if model.changed is None else datetime.fromtimestamp(model.changed).strftime("%Y-%m-%d %H:%M")
        size = "?" if model.size is None else in_bytes(model.size)
        # A run that has no model yet is talked to by that.
        place = model.place if model.model == model.name else f"{model.place}, {Path(model.model).name}"
        table.add_row(model.name, model.family or "?", count, size, written, place)
    return table
