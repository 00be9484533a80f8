"""`export_gguf` writes one whole file, of the types that were asked for, or nothing."""

import errno
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.export import gguf_file
from moe_hf.export.gguf_file import export_gguf
from tests.export.conftest import FIELDS, ReadBack, SaveModel, load, logits

# Of the others transformers reads no GGUF, and a Mixtral in it it takes for a dense model.
READ_BY_TRANSFORMERS = ("qwen2_moe", "qwen3_moe", "llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("kind", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model(kind: str, saved: SaveModel) -> None:
    folder = saved(kind)
    export_gguf(str(folder), folder / "out.gguf")
    assert torch.equal(logits(load(folder, gguf_file="out.gguf")), logits(load(folder)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_without_a_type_the_file_keeps_the_models(dtype: torch.dtype, saved: SaveModel) -> None:
    folder = saved("mixtral", dtype=dtype)
    report = export_gguf(str(folder), folder / "out.gguf")
    read, name = ReadBack(report.path), {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(read.tensors["token_embd.weight"], stored.float())
    assert read.types["blk.0.ffn_up_exps.weight"] == read.types["output.weight"] == name
    assert {read.types[f"blk.0.{part}.weight"] for part in ("ffn_gate_inp", "attn_norm")} == {"F32"}
    assert report.types == ({"F32": 23} if name == "F32" else {"F32": 7, name: 16})


def test_q8_0_takes_all_matrices_whose_rows_it_can(saved: SaveModel) -> None:
    folder = saved("mixtral")
    report = export_gguf(str(folder), folder / "out.gguf", "q8_0")
    exact = ReadBack(export_gguf(str(folder), folder / "exact.gguf", "f32").path).tensors
    read = ReadBack(report.path)
    # Rows of 48 numbers are no whole blocks of 32.
    assert report.kept == ["blk.0.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"]
    assert {read.types[name] for name in report.kept} == {"F16"}
    assert read.types["blk.0.ffn_gate_exps.weight"] == "Q8_0"
    assert read.fields["general.file_type"] == 7
    for name, value in read.tensors.items():
        assert (value - exact[name]).norm() <= 0.01 * exact[name].norm(), name
    assert report.size == report.path.stat().st_size < (folder / "exact.gguf").stat().st_size


def test_tensors_are_read_one_by_one_and_told(saved: SaveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen, alive = saved("mixtral"), [], []
    encode = gguf_file.encoded

    def watched(gguf: object, name: str, value: torch.Tensor, kind: str):
        alive.append((name, len(seen)))
        return encode(gguf, name, value, kind)

    monkeypatch.setattr(gguf_file, "encoded", watched)
    export_gguf(str(folder), folder / "out.gguf", on_tensor=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 23) for i in range(23)]
    assert [before for _, before in alive] == list(range(23))


def test_what_a_type_can_not_hold_is_refused(saved: SaveModel) -> None:
    folder = saved("mixtral")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"blk.1.attn_v.weight holds 1e\+05, which is too large for f16; choose"):
        export_gguf(str(folder), folder / "out.gguf", "f16")
    assert not list(folder.glob("*out.gguf*"))
    export_gguf(str(folder), folder / "out.gguf", "bf16")
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"blk.1.attn_v.weight holds nan; its model is broken"):
        export_gguf(str(folder), folder / "out.gguf", overwrite=True)


def test_destinations_that_can_not_be_written_are_named(saved: SaveModel, tmp_path: Path) -> None:
    folder = saved("mixtral")
    with pytest.raises(CheckpointError, match=r"there is no folder .*/nowhere for out.gguf; create it first"):
        export_gguf(str(folder), tmp_path / "nowhere" / "out.gguf")
    with pytest.raises(CheckpointError, match=r"model is a folder; name a file, such as .*model/model.gguf"):
        export_gguf(str(folder), folder)
    taken = tmp_path / "out.gguf"
    taken.write_text("mine")
    with pytest.raises(CheckpointError, match=r"out.gguf already exists; choose another file or overwrite it"):
        export_gguf(str(folder), taken)
    assert taken.read_text() == "mine"
    export_gguf(str(folder), taken, overwrite=True)
    with pytest.raises(CheckpointError, match=r"is a GGUF file already"):
        export_gguf(str(taken), tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"model.safetensors is no name of a GGUF file; it must end in .gguf"):
        export_gguf(str(folder), folder / "model.safetensors", overwrite=True)
    with pytest.raises(ConfigError, match=r"quantize='q4' is not allowed; it must be one of f32, f16, bf16, q8_0"):
        export_gguf(str(folder), tmp_path / "other.gguf", "q4")


def test_a_disk_that_is_too_small_or_fills_up_leaves_the_old_file(
    saved: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = saved("mixtral"), tmp_path / "out.gguf"
    path.write_text("old")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(gguf_file.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 100, 100))
    with pytest.raises(CheckpointError, match=r"out.gguf needs 0.0 GB but its disk has 0.0 GB free; choose a smaller"):
        export_gguf(str(folder), path, overwrite=True)
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf_file, "_pad", full)
    with pytest.raises(OSError, match=r"No space left on device \(.* MB free\).*out.gguf"):
        export_gguf(str(folder), path, overwrite=True)
    assert [entry.name for entry in tmp_path.glob("*out*")] == ["out.gguf"]
    assert path.read_text() == "old"


def test_every_family_is_exported(saved: SaveModel) -> None:
    for kind in FIELDS:
        report = export_gguf(str(saved(kind, kind)), saved(kind, kind) / "out.gguf", "q8_0")
        assert report.parameters == sum(value.numel() for value in ReadBack(report.path).tensors.values())


def test_a_configuration_that_transformers_refuses_is_named(saved: SaveModel, tmp_path: Path) -> None:
    folder = saved("mixtral")
    (folder / "config.json").write_text('{"model_type": "mixtral", "hidden_size": "wide"}')
    with pytest.raises(CheckpointError, match=r"the config.json of .*model is not allowed: "):
        export_gguf(str(folder), tmp_path / "out.gguf")
