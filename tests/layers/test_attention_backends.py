"""Which attention kernel runs: the requested one, or the next that this machine has, with one warning."""

import logging
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedModel

from moe_hf import create_moe_config
from moe_hf.base.optional import OPTIONAL_PACKAGES, is_available
from moe_hf.layers import attention_backends
from moe_hf.layers.attention_backends import resolve_attn_implementation

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
