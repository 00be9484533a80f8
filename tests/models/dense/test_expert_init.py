"""Making experts of one dense FFN: copies, noise and drop, each with its promised statistics."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.models.dense.expert_init import EXPERT_MAKERS, ExpertRecipe, FFNParameter, StackedExperts, seed_of
from moe_hf.models.dense.lazy_tensors import LazyTensor

E, F, D = 6, 40, 24
PARTS = {"up_proj.weight": 0, "up_proj.bias": 0, "down_proj.weight": 1, "down_proj.bias": None}
SHAPES = {"up_proj.weight": (F, D), "up_proj.bias": (F,), "down_proj.weight": (D, F), "down_proj.bias": (D,)}
KINDS = ["copy", "noise", "drop"]


class Held(LazyTensor):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__(tuple(value.shape), "F32" if value.dtype == torch.float32 else "BF16")
        self.value = value

    def read(self) -> torch.Tensor:
        return self.value


def dense(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_of("dense", name))
    return (torch.randn(SHAPES[name], generator=generator) * 0.1 + 0.03).to(dtype)


def stack(name: str, kind: str, layer: int = 0, seed: int = 0, noise: float = 0.5, ratio: float = 0.5, **how):
    recipe = ExpertRecipe(kind, noise, ratio, seed)
    return StackedExperts(Held(dense(name, **how)), E, FFNParameter(layer, name, PARTS[name]), recipe)


@pytest.mark.parametrize("name", PARTS)
def test_copies_are_copies_in_memory_of_their_own(name: str) -> None:
    value = stack(name, "copy").read()
    assert all(value[expert].equal(dense(name)) for expert in range(E))
    value[0].zero_()
    assert value[1].equal(dense(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    "index",
    [
        ...,
        slice(1, 3),
        2,
        (slice(2, 5), slice(0, 7)),
        (slice(None), slice(3, 9)),
        slice(None, None, 2),
        -1,
        slice(4, 4),
    ],
    ids=str,
)
def test_a_part_equals_the_part_of_the_whole(name: str, kind: str, index) -> None:
    lazy = stack(name, kind)
    whole = lazy[...]
    assert lazy.get_shape() == list(whole.shape) == [E, *SHAPES[name]]
    assert lazy[index].equal(whole[index])
    assert lazy[index].is_contiguous()


def test_reading_two_experts_makes_only_two(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = EXPERT_MAKERS["noise"]

    def counted(value, part, expert, recipe):
        made.append(expert)
        return make(value, part, expert, recipe)

    monkeypatch.setitem(EXPERT_MAKERS._parts, "noise", counted)
    stack("up_proj.weight", "noise")[3:5]
    assert made == [3, 4]


@pytest.mark.parametrize("kind", ["noise", "drop"])
def test_values_depend_on_the_seed_the_layer_the_part_and_the_expert_alone(kind: str) -> None:
    first = stack("up_proj.weight", kind).read()
    torch.randn(5)
    stack("down_proj.weight", kind).read()
    assert stack("up_proj.weight", kind).read().equal(first)
    assert not stack("up_proj.weight", kind, seed=1).read().equal(first)
    assert not stack("up_proj.weight", kind, layer=1).read().equal(first)
    assert all(not first[i].equal(first[j]) for i in range(E) for j in range(i))


@pytest.mark.parametrize("name", PARTS)
def test_noise_is_centred_and_scales_with_the_weight_s_spread(name: str) -> None:
    added = stack(name, "noise", noise=0.5).read() - dense(name)
    spread = 0.5 * dense(name).std(correction=0)
    assert added.std().item() == pytest.approx(spread.item(), rel=0.25)
    assert abs(added.mean().item()) < 4 * spread.item() / added.numel() ** 0.5
    assert stack(name, "noise", noise=0.0).read()[2].equal(dense(name))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_drop_redraws_exactly_its_share_and_the_same_units_everywhere(ratio: float) -> None:
    up, bias, down = (stack(name, "drop", ratio=ratio).read() for name in list(PARTS)[:3])
    for expert in range(E):
        redrawn = (up[expert] != dense("up_proj.weight")).any(dim=1)
        assert redrawn.sum().item() == round(ratio * F)
        # All of a unit or nothing of it.
        assert redrawn.equal((up[expert] != dense("up_proj.weight")).all(dim=1))
        assert redrawn.equal(bias[expert] != dense("up_proj.bias"))
        assert redrawn.equal((down[expert] != dense("down_proj.weight")).any(dim=0))


def test_drop_chooses_other_units_for_each_expert_and_layer() -> None:
    chosen = [(stack("up_proj.bias", "drop", layer=layer).read() != dense("up_proj.bias")) for layer in (0, 1)]
    rows = [tuple(row.tolist()) for layer in chosen for row in layer]
    assert len(set(rows)) == 2 * E


def test_drop_leaves_the_output_bias_alone() -> None:
    assert (stack("down_proj.bias", "drop", ratio=1.0).read() == dense("down_proj.bias")).all()


@pytest.mark.parametrize("name", list(PARTS)[:3])
def test_drop_draws_from_the_weights_own_mean_and_spread(name: str) -> None:
    value = stack(name, "drop", ratio=1.0).read()
    original = dense(name)
    assert value.std().item() == pytest.approx(original.std().item(), rel=0.15)
    error = original.std().item() / value.numel() ** 0.5
    assert value.mean().item() == pytest.approx(original.mean().item(), abs=5 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_half_and_is_drawn_in_float32(kind: str) -> None:
    value = stack("up_proj.weight", kind, dtype=torch.bfloat16).read()
    assert value.dtype == torch.bfloat16
    reference = stack("up_proj.weight", kind).read()
    torch.testing.assert_close(value.float(), reference, atol=5e-3, rtol=2e-2)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown expert_init 'split'; allowed: copy, drop, noise"):
        stack("up_proj.bias", "split").read()
