import io

from rich.table import Table
from rich.text import Text

from moe_hf.cli.screen import Screen

EVIL = "o2[/x] [bold]b\x1b]0;title\x07\x9b2J :smile: \udcff"
SHOWN = "o2[/x] [bold]b]0;title2J :smile: \ufffd"


def test_what_is_printed_is_neither_markup_nor_an_escape_sequence():
    file = io.StringIO()
    screen = Screen(file=file, width=200, force_terminal=True, color_system="truecolor")
    table = Table(title=EVIL)
    table.add_column(EVIL, no_wrap=True)
    table.add_row(EVIL)
    screen.print(EVIL, soft_wrap=True)
    screen.print(table)
    screen.print(Text(EVIL, style="bold"), soft_wrap=True)
    with screen.status(Text(EVIL)):
        pass
    out = file.getvalue()
    assert "\x1b]0;" not in out
    assert not {"\x07", "\x9b", "\udcff"} & set(out)
    assert out.count(SHOWN) >= 5
    # Its own styles and cursor moves still come through.
    assert "\x1b[1m" in out
    assert "\x1b[?25l" in out
