"""Dense tensors are found by either name, cut as they are asked for, and all that is wrong is said at once."""

import re
from types import SimpleNamespace

import pytest
import torch

from moe_hf.base.errors import CheckpointError
from moe_hf.models.dense.lazy_tensors import Held
from moe_hf.models.dense.source import DenseSource


def source(**tensors: torch.Tensor) -> DenseSource:
    held = {name.replace("__", "."): Held(value) for name, value in tensors.items()}
    return DenseSource(held, "dense toy", "body.", re.compile("mask$"))


def test_a_tensor_is_found_with_and_without_the_prefix() -> None:
    found = source(body__a=torch.ones(2), b=torch.zeros(3), mask=torch.ones(1), score__weight=torch.ones(1))
    assert (found.has("a"), found.has("b"), found.has("c")) == (True, True, False)
    assert found.stored_name("c", "b") == "b"
    assert found.sliced("a", (2,)).read().sum() == 2
    found.sliced("b")
    found.raise_if_incomplete()


def test_a_block_of_columns_is_cut_out_and_turned() -> None:
    whole = torch.arange(12.0).view(2, 6)
    assert source(a=whole).sliced("a", (2, 6), transpose=True, part=(1, 3)).read().equal(whole[:, 2:4].T)
    assert source(a=whole[:, None]).flat("a", (2, 1, 6)).read().equal(whole.flatten())


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda s: (s.sliced("a"), s.sliced("x"), s.sliced("x"), s.sliced("y")), "lacks 2 .* x, y; it is incomplete"),
        (lambda s: s.sliced("a", (3,)), r"has a of shape \(2,\), but the configuration asks for \(3,\)"),
        (lambda s: s.require(SimpleNamespace(kind=1), kind=2), "what kind=2 describes, but kind=1"),
        (lambda s: None, "no place for 1 of them: body.a"),
    ],
)
def test_what_is_wrong_is_said(ask, text: str) -> None:
    found = source(body__a=torch.ones(2))
    ask(found)
    with pytest.raises(CheckpointError, match=text):
        found.raise_if_incomplete()
