"""Which attention kernel runs: the requested one, or the next that this machine has, with one warning.

Shapes: B batch, S queries, N keys, H query heads, G key heads, C head width.
"""

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moe_hf import create_moe_config
from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available
from moe_hf.layers.attention import backends as attention_backends
from moe_hf.layers.attention.backends import flash_attention3, resolve_attn_implementation

FLASH = ["flash_attention_2", "flash_attention_3", "flash_attention_4"]
PACKAGE = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_3", "flash_attention_4": "flash_attn_4"}
without_flash = pytest.mark.skipif(any(map(is_available, PACKAGE.values())), reason="a flash package is installed")


@pytest.fixture
def warnings_of_backends(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    # Each text is logged once per process; forget what earlier tests have logged.
    type(attention_backends.logger).warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Machine:
    """Stands in for transformers' check on a machine that has these implementations only."""

    def __init__(self, *present: str) -> None:
        self.present = present
        self.asked: list[str | None] = []

    def __call__(self, name: str | None) -> str:
        self.asked.append(name)
        if name is not None and name.startswith("flash") and name not in self.present:
            raise ImportError(f"{name} is not installed")
        return name or "sdpa"


@pytest.mark.parametrize("requested", [None, "eager", "sdpa", "flex_attention"])
def test_what_is_no_flash_version_goes_straight_to_the_check(requested: str | None) -> None:
    machine = Machine()
    assert resolve_attn_implementation(requested, machine) == (requested or "sdpa")
    assert machine.asked == [requested]


def test_an_unknown_name_keeps_the_check_s_own_error() -> None:
    def check(name: str | None) -> str:
        raise ValueError(f"{name} is unknown; valid are ...")

    with pytest.raises(ValueError, match="flush_attention_2 is unknown"):
        resolve_attn_implementation("flush_attention_2", check)


@pytest.mark.parametrize(
    ("requested", "present", "expected"),
    [
        ("flash_attention_4", ["flash_attention_4", "flash_attention_2"], "flash_attention_4"),
        ("flash_attention_4", ["flash_attention_3", "flash_attention_2"], "flash_attention_3"),
        ("flash_attention_4", ["flash_attention_2"], "flash_attention_2"),
        ("flash_attention_3", ["flash_attention_2", "flash_attention_4"], "flash_attention_2"),
        ("flash_attention_2", ["flash_attention_3"], "sdpa"),
        ("flash_attention_4", [], "sdpa"),
    ],
)
def test_falls_back_one_version_at_a_time_and_never_up(
    requested: str, present: list[str], expected: str, warnings_of_backends: Callable[[], list[str]]
) -> None:
    assert resolve_attn_implementation(requested, Machine(*present)) == expected
    texts = warnings_of_backends()
    assert len(texts) == (requested != expected)
    for text in texts:
        assert f"'{requested}'" in text
        assert f"'{expected}'" in text
        assert OPTIONAL_PACKAGES[PACKAGE[requested]].install in text


@without_flash
@pytest.mark.parametrize("requested", FLASH)
def test_a_model_without_the_flash_packages_runs_on_sdpa_and_says_so_once(
    requested: str, tiny_model, token_ids, warnings_of_backends: Callable[[], list[str]]
) -> None:
    model = tiny_model(attn_implementation=requested)
    assert model.config._attn_implementation == model.model.config._attn_implementation == "sdpa"
    assert model(token_ids).logits.equal(tiny_model()(token_ids).logits)
    tiny_model(attn_implementation=requested)
    (text,) = warnings_of_backends()
    assert "To get it: " in text


@without_flash
def test_loading_and_switching_fall_back_too(
    tiny_model, tmp_path, warnings_of_backends: Callable[[], list[str]]
) -> None:
    model: PreTrainedModel = tiny_model(attn_implementation="eager")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="flash_attention_3")
    assert loaded.config._attn_implementation == "sdpa"
    model.set_attn_implementation("flash_attention_3")
    assert model.config._attn_implementation == "sdpa"
    assert len(warnings_of_backends()) == 1


@without_flash
def test_a_preset_takes_flash_attention_by_name(warnings_of_backends: Callable[[], list[str]]) -> None:
    from moe_hf import GPT2WithMoE

    config = create_moe_config("tiny", attn_implementation="flash_attention_2", num_hidden_layers=1)
    assert GPT2WithMoE(config).config._attn_implementation == "sdpa"
    assert "moe_hf[flash]" in warnings_of_backends()[0]


def dense_attention(
    query_BSHC: torch.Tensor, key_BNGC: torch.Tensor, value_BNGC: torch.Tensor, causal: bool, scale: float
) -> torch.Tensor:
    """From the equation, for the layout of FlashAttention: the last query stands at the last key."""
    groups = query_BSHC.shape[2] // key_BNGC.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key_BNGC, value_BNGC))
    score_BHSN = torch.einsum("bshc,bnhc->bhsn", query_BSHC, key) * scale
    if causal:
        ahead = torch.ones(score_BHSN.shape[-2:], dtype=torch.bool).triu(1 + key.shape[1] - query_BSHC.shape[1])
        score_BHSN = score_BHSN.masked_fill(ahead, -torch.inf)
    return torch.einsum("bhsn,bnhc->bshc", score_BHSN.softmax(dim=-1).nan_to_num(), value)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7), (7, 3)])
@pytest.mark.parametrize("groups", [4, 2])
def test_flash_attention_3_equals_plain_attention_in_value_and_gradient(
    causal: bool, queries: int, keys: int, groups: int
) -> None:
    torch.manual_seed(0)
    shapes = (2, queries, 4, 8), (2, keys, groups, 8), (2, keys, groups, 8)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for given, scale in ((None, 8**-0.5), (0.9, 0.9)):
        out = flash_attention3(*tensors, causal=causal, scale=given)
        wanted = dense_attention(*tensors, causal, scale)
        torch.testing.assert_close(out, wanted)
        got = torch.autograd.grad(out.square().sum(), tensors)
        torch.testing.assert_close(got, torch.autograd.grad(wanted.square().sum(), tensors))


def test_has_flash3_says_whether_the_package_is_there() -> None:
    assert attention_backends._HAS_FLASH3 == is_available("flash_attn_3")


@pytest.mark.parametrize("with_logsums", [False, True])
def test_the_kernel_of_flash_attention_3_is_called_as_its_releases_want_it(
    with_logsums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flash_attn_func(q: Any, k: Any, v: Any, softmax_scale: float | None = None, causal: bool = False) -> Any:
        out = dense_attention(q, k, v, causal, q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
        return (out, torch.zeros(2, 4, 3)) if with_logsums else out

    package = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(attention_backends, "require", lambda name, purpose: package)
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 7, 2, 8)
    for scale in (None, 0.9):
        got = attention_backends._flash3(query, key, key, causal=True, scale=scale)
        torch.testing.assert_close(got, flash_attention3(query, key, key, causal=True, scale=scale))


def test_a_flash_attention_3_that_cannot_run_is_noticed_once(
    monkeypatch: pytest.MonkeyPatch, warnings_of_backends: Callable[[], list[str]]
) -> None:
    def flash_attn_func(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no kernel image is available")

    package = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(attention_backends, "require", lambda name, purpose: package)
    attention_backends._flash3_runs.cache_clear()
    for _ in range(2):
        assert not attention_backends._flash3_runs(torch.device("cpu"))
    attention_backends._flash3_runs.cache_clear()
    (text,) = warnings_of_backends()
    assert "does not run on cpu" in text
    assert "no kernel image is available" in text
