"""What mixers with a state share: whole calls, stretches and single steps give the same, and states go to the cache."""

from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from transformers import DynamicCache

from moe_hf import RetNetWithMoEConfig
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.recurrent import RecurrentMixer

B, S, D = 2, 11, 3


class SumState(NamedTuple):
    total: torch.Tensor | None = None
    never: torch.Tensor | None = None


class RunningSum(RecurrentMixer):
    """The sum of the real tokens so far; notes how long the pieces were that it was given."""

    state_type: ClassVar[type[Any]] = SumState
    stretch_length: ClassVar[int] = 4

    def __init__(self) -> None:
        config = RetNetWithMoEConfig(hidden_size=4, num_attention_heads=1, num_hidden_layers=1, vocab_size=7)
        super().__init__(config, layer_idx=0)
        self.lengths: list[int] = []

    def multiply_adds(self, context: int) -> int:
        return 0

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: SumState, keeps_state: bool
    ) -> tuple[MixerOutput, SumState]:
        self.lengths.append(x_BSD.shape[1])
        if inputs.padding_mask is not None:
            x_BSD = x_BSD * inputs.padding_mask[..., None]
        sums_BSD = x_BSD.cumsum(1) + (0 if before.total is None else before.total)
        return MixerOutput(sums_BSD, first_value=-sums_BSD), SumState(sums_BSD[:, -1:])


@pytest.fixture(scope="module")
def x_BSD() -> torch.Tensor:
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(0))


def test_without_a_gradient_long_inputs_come_in_stretches(x_BSD: torch.Tensor) -> None:
    mixer, mask = RunningSum(), torch.ones(B, S)
    mask[0, 2:6] = 0
    whole = mixer(x_BSD, LayerInputs(padding_mask=mask))
    with torch.no_grad():
        pieces = mixer(x_BSD, LayerInputs(padding_mask=mask))
    assert mixer.lengths == [11, 4, 4, 3]
    torch.testing.assert_close(pieces, whole)


@torch.no_grad()
def test_the_cache_keeps_each_state_by_name_between_calls(x_BSD: torch.Tensor) -> None:
    mixer = RunningSum()
    cache = DynamicCache(config=mixer.config)
    inputs = LayerInputs(cache=cache)
    parts = [mixer(part, inputs).out_BSD for part in x_BSD.split([5, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), x_BSD.cumsum(1))
    torch.testing.assert_close(cache.layers[0].read("total"), x_BSD.sum(1, keepdim=True))
    # What stays None is not written.
    assert set(cache.layers[0].states) == {"total"}


@torch.no_grad()
def test_one_position_is_a_step_after_others_unless_a_document_begins(x_BSD: torch.Tensor) -> None:
    mixer, before = RunningSum(), torch.zeros(B, 1)
    assert mixer.is_step(before, x_BSD[:, :1], LayerInputs())
    assert not mixer.is_step(None, x_BSD[:, :1], LayerInputs())
    assert not mixer.is_step(before, x_BSD, LayerInputs())
    assert not mixer.is_step(before, x_BSD[:, :1], LayerInputs(document_starts=torch.ones(B, 1, dtype=torch.bool)))


def test_a_recurrence_gets_the_layout_and_the_state(x_BSD: torch.Tensor) -> None:
    given: dict[str, Any] = {}

    def form(*parts: torch.Tensor, **options: Any) -> tuple[torch.Tensor, None]:
        given.update(options)
        return parts[0], None

    mask = torch.ones(B, S)
    RunningSum().recur(form, (), (x_BSD,), LayerInputs(padding_mask=mask), x_BSD[:, 0], output_final_state=False)
    assert given.pop("mask_BS") is mask
    assert given.pop("initial_state").equal(x_BSD[:, 0])
    assert given == {"starts_BS": None, "output_final_state": False}


def test_stretches_come_out_in_the_type_of_a_whole_call() -> None:
    class Halved(RunningSum):
        def mix(self, *args: Any, **kwargs: Any) -> tuple[MixerOutput, SumState]:
            # As a projection under autocast does.
            mixed, state = super().mix(*args, **kwargs)
            return mixed._replace(out_BSD=mixed.out_BSD.bfloat16()), state

    with torch.no_grad():
        short, long = (Halved()(torch.ones(B, length, D), LayerInputs()).out_BSD for length in (3, 11))
    assert short.dtype == long.dtype == torch.bfloat16
