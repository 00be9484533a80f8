"""Every family through torch.export: one program for any length."""

import pytest
import torch
from torch.export import Dim

from moe_hf.base.errors import ConfigError
from moe_hf.models.auto import FAMILIES
from tests.models.families import KINDS, tiny_family

# Those whose ops keep something per segment or per lag; the others take long or are of the same kind.
QUICK = ("mamba1", "hyena-order3", "rwkv7", "rwkv4", "megabyte")
ALL = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def exported(model: torch.nn.Module, *, length: int = 11, **options: torch.Tensor) -> torch.nn.Module:
    """The program of a call on two rows, for any number of rows and of positions."""
    call = {"input_ids": ids_of(2, length), **options}
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in call}
    call, shapes = {**call, "use_cache": False}, {**shapes, "use_cache": None}
    return torch.export.export(model, (), call, dynamic_shapes=shapes).module()


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 61, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("kind", ALL)
def test_one_program_computes_any_number_of_rows_and_tokens(kind: str) -> None:
    model = tiny_family(kind, num_hidden_layers=2)
    program = exported(model)
    with torch.no_grad():
        for batch, length in ((2, 11), (3, 4), (5, 90)):
            ids = ids_of(batch, length)
            out = program(input_ids=ids, use_cache=False).logits
            torch.testing.assert_close(out, model(ids, use_cache=False).logits, **CLOSE)


@pytest.mark.parametrize("kind", [pytest.param("rwkv7", marks=pytest.mark.slow), "mamba1"])
def test_a_program_for_any_length_is_no_program_for_short_ones(kind: str) -> None:
    # More than a segment, and than a block.
    model = tiny_family(kind, num_hidden_layers=2)
    ids = ids_of(1, 550)
    with torch.no_grad():
        out = exported(model)(input_ids=ids.repeat(2, 1), use_cache=False).logits[:1]
        torch.testing.assert_close(out, model(ids, use_cache=False).logits, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("router", ["hash", "expert_choice"])
def test_a_program_with_padding_routes_as_the_model_does(router: str) -> None:
    model = tiny_family("retnet", num_hidden_layers=2, router_type=router)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :3] = 0
    program = exported(model, attention_mask=mask)
    ids, mask = ids_of(3, 17), torch.ones(3, 17, dtype=torch.long)
    mask[1, :6] = 0
    with torch.no_grad():
        out = program(input_ids=ids, attention_mask=mask, use_cache=False).logits
        wanted = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(out[mask.bool()], wanted[mask.bool()], **CLOSE)


def test_a_program_that_labels_sequences_takes_any_number_of_rows() -> None:
    # With a limit of its own on how many tokens an expert takes of each row.
    config = tiny_family("gpt2", num_hidden_layers=2, router_capacity_factor=1.0).config
    config.pad_token_id = 0
    model = FAMILIES["gpt2_moe"].sequence_classification(config).eval()
    program = exported(model, attention_mask=torch.ones(2, 11, dtype=torch.long))
    ids, mask = ids_of(3, 17), torch.ones(3, 17, dtype=torch.long)
    mask[1, :6] = 0
    with torch.no_grad():
        out = program(input_ids=ids, attention_mask=mask, use_cache=False).logits
        wanted = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(out, wanted, **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "megabyte", "hyena", "mamba1", "rwkv7"])
def test_a_cache_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match="give use_cache=False"):
        torch.export.export(tiny_family(kind, num_hidden_layers=2), (), {"input_ids": ids_of(2, 11)})


def test_padding_of_patches_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="MegaByte with an attention_mask"):
        exported(tiny_family("megabyte"), attention_mask=torch.ones(2, 11, dtype=torch.long))
