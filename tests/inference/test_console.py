"""A block of several lines begins and ends with three quotation marks."""

import pytest

from moe_hf.inference.console import is_open_block, without_block


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ('"""', True),
        ('"""one', True),
        ('  """one\ntwo', True),
        ('"""one"""', False),
        ('"""one\ntwo\n"""  ', False),
        ('one"""', False),
        ("one", False),
    ],
)
def test_a_block_is_open_until_it_is_ended(text: str, is_open: bool) -> None:
    assert is_open_block(text) == is_open


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ('"""one"""', "one"),
        ('"""\none\n  two\n"""', "one\n  two"),
        ('"""one', "one"),
        ('""""""', ""),
        ("one", None),
        ('one """two"""', None),
    ],
)
def test_what_stands_inside_a_block(text: str, inside: str | None) -> None:
    assert without_block(text) == inside
