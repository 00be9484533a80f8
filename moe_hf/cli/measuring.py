"""What the commands that measure share: the device, the folder of the report, and tables on a wide console."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from moe_hf.base.errors import ConfigError
from moe_hf.cli.screen import Screen

_PIPED_WIDTH = 120


def wide_console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough for any table where there is none."""
    console = Screen()
    return console if console.is_terminal else Screen(width=_PIPED_WIDTH)


def report_folder(word: str | None) -> Path | None:
    """The folder of that name, made if it is missing; None for None.

    Raises:
        ConfigError: there is something else of that name.
    """
    if word is None:
        return None
    folder = Path(word)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"report={word!r} is not allowed; it must be a folder, and a file is in its place") from None
    return folder


def chosen_device(word: str | None) -> torch.device:
    """The device of that name; without one, CUDA where there is one.

    Raises:
        ConfigError: it is neither cpu nor cuda, or there is no CUDA device here.
    """
    if word not in (None, "cpu", "cuda"):
        raise ConfigError(f"device={word!r} is not allowed; it must be cpu or cuda")
    if word == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={word!r}: there is no CUDA device here; use cpu")
    return torch.device(word or ("cuda" if torch.cuda.is_available() else "cpu"))


def table_of(
    columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = (), words: Sequence[str] = ()
) -> Table:
    """A table without a frame; the first column and those named in `words` hold text, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        is_text = number == 0 or column in words
        table.add_column(column, justify="left" if is_text else "right", no_wrap=number > 0)
    for index, row in enumerate(rows):
        table.add_row(*row, style=styles[index] if styles else "")
    return table
