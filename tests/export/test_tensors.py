"""Tensors get llama.cpp's names and layouts, and all of a model's are there."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_hf.base.errors import CheckpointError
from moe_hf.export.architectures import ARCHITECTURES
from moe_hf.export.gguf_file import export_gguf
from moe_hf.export.tensors import sizes_of
from tests.export.conftest import FIELDS, ReadBack, SaveModel, load

# Routers that have another name in the files than in transformers' class.
ROUTERS = {"mixtral": ("mlp.gate.", "block_sparse_moe.gate."), "granitemoe": (".router.", ".router.layer.")}


def pairs_apart(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """What undoes the order of llama.cpp's rows of queries and keys."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@pytest.mark.parametrize("kind", FIELDS)
def test_each_tensor_has_the_name_that_gguf_says_and_its_numbers(kind: str, saved: SaveModel, tmp_path: Path) -> None:
    import gguf

    folder = saved(kind)
    export_gguf(str(folder), tmp_path / "out.gguf", "f32")
    written, model = ReadBack(tmp_path / "out.gguf").tensors, load(folder)
    row, sizes = ARCHITECTURES[kind], sizes_of(model.config, ARCHITECTURES[kind])
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == row.name)
    names = gguf.get_tensor_name_map(number, sizes.layers)
    for name, value in model.state_dict().items():
        if match := re.fullmatch(r"model\.layers\.(\d+)\..*(gate_up_proj|input_linear\.weight)", name):
            gate, up = (written.pop(f"blk.{match[1]}.ffn_{half}_exps.weight") for half in ("gate", "up"))
            assert torch.equal(torch.cat([gate, up], dim=1), value), name
            continue
        if match := re.fullmatch(r"model\.layers\.(\d+)\..*\.experts\.down_proj", name):
            assert torch.equal(written.pop(f"blk.{match[1]}.ffn_down_exps.weight"), value), name
            continue
        got = written.pop(names.get_name(name.replace(*ROUTERS.get(kind, ("", ""))), (".weight", ".bias")))
        if row.rotates_pairs and ("q_proj" in name or "k_proj" in name):
            got = pairs_apart(got, sizes.heads if "q_proj" in name else sizes.key_heads)
        assert torch.equal(got.reshape(value.shape), value), name
    assert not written


def test_a_tied_head_is_left_out_where_llama_cpp_takes_the_embedding(saved: SaveModel, tmp_path: Path) -> None:
    for kind, has_head in (("mixtral", False), ("qwen2", False), ("qwen2_moe", True)):
        export_gguf(str(saved(kind, kind, tie_word_embeddings=True)), tmp_path / f"{kind}.gguf")
        written = ReadBack(tmp_path / f"{kind}.gguf").tensors
        assert ("output.weight" in written) == has_head
        if has_head:
            assert torch.equal(written["output.weight"], written["token_embd.weight"])


def test_a_shared_gate_of_zeros_stays_a_half_and_is_no_zero(saved: SaveModel, tmp_path: Path) -> None:
    folder = saved("qwen2_moe")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.shared_expert_gate.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export_gguf(str(folder), tmp_path / "out.gguf", "bf16")
    gate = ReadBack(tmp_path / "out.gguf").tensors["blk.1.ffn_gate_inp_shexp.weight"]
    assert gate.all()
    assert (gate.sum() * 1e9).sigmoid() == 0.5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model.layers.0.block_sparse_moe.experts.1.w2.weight": None}, "lacks 1 .*experts.1.w2.weight; it is incomp"),
        (
            {"model.norm.weight": torch.ones(31)},
            r"norm.weight of shape \(31,\), but the configuration asks for \(32,\)",
        ),
        ({"model.layers.9.input_layernorm.weight": torch.ones(32)}, "no place for 1 of them: model.layers.9.input"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: dict[str, torch.Tensor | None], text: str, saved: SaveModel, tmp_path: Path
) -> None:
    folder = saved("mixtral")
    weights = {**load_file(folder / "model.safetensors"), **change}
    kept = {name: value for name, value in weights.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=text):
        export_gguf(str(folder), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
