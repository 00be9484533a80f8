"""`moe-hf list`: shows the models of this machine."""

import argparse
from datetime import datetime
from pathlib import Path

from rich.table import Table

from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.inference.local_models import LocalModel, local_models


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
        written = datetime.fromtimestamp(model.changed).strftime("%Y-%m-%d %H:%M")
        table.add_row(model.name, model.family or "?", count, in_bytes(model.size), written, model.place)
    return table
