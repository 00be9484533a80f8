"""The patch embedder: its formula, its shift, and what it refuses."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.layers.patching import MegaBytePatching

B, S, P, D = 2, 10, 4, 24


@pytest.fixture
def patching() -> MegaBytePatching:
    torch.manual_seed(0)
    return MegaBytePatching(patch_size=P, dim=D)


def text(length: int = S) -> torch.Tensor:
    return torch.randint(256, (B, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [0, 1, 4, 7, 8, 10])
def test_a_patch_is_the_joined_vectors_of_its_bytes(patching: MegaBytePatching, length: int) -> None:
    ids = text(length)
    patches = patching(ids)
    assert patches.shape == (B, -(-length // P), D)
    for row in range(B):
        for k in range(patches.shape[1]):
            bytes_of_patch = ids[row, k * P : (k + 1) * P].tolist()
            parts = [patching.embedding.weight[byte] for byte in bytes_of_patch]
            parts += [torch.zeros(D // P)] * (P - len(parts))
            assert patches[row, k].equal(torch.cat(parts))


def test_masked_bytes_count_as_absent(patching: MegaBytePatching) -> None:
    ids = text()
    mask = (torch.arange(S) < 6).expand(B, S)
    assert patching(ids, mask)[:, :2].equal(patching(ids[:, :6]))


def test_shifted_patches_know_nothing_of_their_own_bytes(patching: MegaBytePatching) -> None:
    ids = text()
    before = patching.shifted(patching(ids))
    for j in range(S):
        changed = ids.clone()
        changed[:, j] = (changed[:, j] + 1) % 256
        after = patching.shifted(patching(changed))
        own = j // P
        assert after[:, : own + 1].equal(before[:, : own + 1])
        if own + 1 < before.shape[1]:
            assert not after[:, own + 1].equal(before[:, own + 1])


def test_documents_begin_with_the_start_patch(patching: MegaBytePatching) -> None:
    patches = patching(text())
    begins = torch.tensor([[True, False, False], [True, False, True]])
    shifted = patching.shifted(patches, begins)
    assert shifted[1, 2].equal(patching.start)
    assert shifted[0].equal(patching.shifted(patches)[0])


def test_all_of_it_is_learnt(patching: MegaBytePatching) -> None:
    patching.shifted(patching(text())).sum().backward()
    assert patching.start.grad is not None
    assert patching.start.grad.abs().min() > 0
    assert patching.embedding.weight.grad is not None


def test_any_integer_type_will_do(patching: MegaBytePatching) -> None:
    ids = text()
    assert patching(ids.to(torch.uint8)).equal(patching(ids))
    assert patching(ids.to(torch.int32)).equal(patching(ids))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 5, "dim": 24}, "dim=24 is not allowed; it must be a positive multiple of patch_size=5"),
        ({"patch_size": 4, "dim": 0}, "dim=0 is not allowed"),
        ({"patch_size": 0, "dim": 24}, "patch_size must be an integer >= 1, got 0"),
        ({"patch_size": 4, "dim": 24, "vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MegaBytePatching(**fields)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(B, S), "torch.float32 are not allowed; they must be .* integers"),
        (torch.zeros(B, S, dtype=torch.bool), "torch.bool are not allowed"),
        (torch.zeros(S, dtype=torch.long), r"shape \(10,\)"),
        (torch.full((B, S), 256), r"in \[256, 256\] are not allowed; they must be in \[0, 256\)"),
        (torch.full((B, S), -1), r"in \[-1, -1\] are not allowed"),
    ],
)
def test_what_is_no_byte_is_an_error(patching: MegaBytePatching, ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        patching(ids)
