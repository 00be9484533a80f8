"""A table of rules names the first field that breaks one, its value and what is allowed."""

from types import SimpleNamespace

import pytest

from moe_hf import ConfigError
from moe_hf.config.rules import Rule, at_most, integer, one_of, optional
from moe_hf.config.validation import ValidDecoder


class Fields(SimpleNamespace):
    require, require_all = ValidDecoder.require, ValidDecoder.require_all


RULES = (
    integer("rows width", least=1, most=9),
    one_of("kind", ("plain", "gated")),
    optional(at_most("factor", 2.0)),
    Rule("share", lambda value: 0 <= value < 1, "a number in [0, 1)"),
)
GOOD = {"rows": 1, "width": 9, "kind": "gated", "factor": None, "share": 0.0}


@pytest.mark.parametrize("changes", [{}, {"factor": 2.0}, {"share": 0.99}])
def test_what_is_allowed_passes(changes) -> None:
    Fields(**{**GOOD, **changes}).require_all(RULES)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rows": 0}, "rows=0 is not allowed; it must be an integer >= 1 and <= 9"),
        ({"width": 10}, "width=10 is not allowed; it must be an integer >= 1 and <= 9"),
        ({"kind": "odd"}, "kind='odd' is not allowed; it must be one of plain, gated"),
        ({"factor": 0}, "factor=0 is not allowed; it must be None or a finite number > 0 and <= 2"),
        ({"factor": float("nan")}, "factor=nan is not allowed; it must be None or a finite number > 0 and <= 2"),
        ({"share": 1}, r"share=1 is not allowed; it must be a number in \[0, 1\)"),
        ({"width": 10, "kind": "odd"}, "width=10"),
    ],
)
def test_what_is_not_is_named(changes, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Fields(**{**GOOD, **changes}).require_all(RULES)
