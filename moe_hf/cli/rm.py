"""`moe-hf rm`: removes a model of this machine, once the user said yes."""

import argparse
import sys
from pathlib import Path

from moe_hf.base.errors import ConfigError
from moe_hf.base.printable import printable
from moe_hf.cli.screen import in_bytes
from moe_hf.inference.removing_models import Removal, plan_removals


def main(argv: list[str] | None = None, prog: str = "moe-hf rm") -> int:
    """Remove the models; returns the exit code: 0, or 1 if the user said no to one."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Removes models of this machine, with their checkpoints: a run by its name, a model's folder by "
        "its path, a model of the Hub's cache by its id. Links are not followed. moe-hf list shows what there is.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="run, path of a model's folder, or Hub id")
    parser.add_argument(
        "--runs_dir", type=Path, default=Path("runs"), help="where training puts its runs (%(default)s)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    args = parser.parse_args(argv)
    # All of them first: a wrong name leaves everything there.
    removals = plan_removals(args.names, args.runs_dir)
    kept = 0
    for removal in removals:
        if not (args.yes or _agreed(removal)):
            kept += 1
            continue
        removal.carry_out()
        print(f"removed {printable(removal.name)}, {in_bytes(removal.size)}")
    return 1 if kept else 0


def _agreed(removal: Removal) -> bool:
    what = f"{printable(removal.name)}, {removal.num_files} files, {in_bytes(removal.size)}"
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError(f"{what} would be removed, but nobody can be asked here; say --yes")
    try:
        return input(f"remove {what}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
