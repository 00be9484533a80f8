"""Models of every class are quantised while they load, saved, loaded again and adapted; the rest is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from moe_hf import CheckpointError, ConfigError, GPT2WithMoE, MoEQuantizationConfig
from moe_hf.base.optional import is_available
from moe_hf.quantization.quantizer import quantized_modules
from tests.models.families import tiny_family
from tests.models.native_moes import NATIVE_MOES, native_moe

# Widths of whole groups of 32.
WIDE = {"intermediate_size": 64, "moe_intermediate_size": 32}
FAMILIES = ("gpt2", "llama", "mamba2", "hyena", "rwkv7", "retnet", "megabyte")
NEAR = {8: 0.04, 4: 0.4}


def made(kind: str) -> PreTrainedModel:
    if kind in NATIVE_MOES:
        takes = NATIVE_MOES[kind]().to_dict()
        return native_moe(kind, **{name: value for name, value in WIDE.items() if name in takes}).eval()
    local = {"local_config": {"hidden_size": 32, "num_attention_heads": 2}} if kind == "megabyte" else {}
    return tiny_family(kind, intermediate_size=64, **local)


def logits_of(model: PreTrainedModel, backend: str = "auto") -> torch.Tensor:
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation(backend)
    with torch.no_grad():
        return model(ids).logits


def away(found: torch.Tensor, expected: torch.Tensor) -> float:
    # Of the median position: routes may flip where two experts are nearly even.
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median().item()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [*FAMILIES, *NATIVE_MOES])
def test_every_class_is_quantised_saved_and_loaded(kind: str, bits: int, tmp_path: Path) -> None:
    model = made(kind)
    model.save_pretrained(tmp_path / "float")
    config = MoEQuantizationConfig(bits)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config).eval()
    modules = dict(quantized_modules(quantised))
    assert modules
    assert not any(
        name.rpartition(".")[0] in modules and "bias" not in name for name, _ in quantised.named_parameters()
    )
    expected, eager = logits_of(model), logits_of(quantised, "eager")
    assert 0 < away(eager, expected) < NEAR[bits]
    fast = logits_of(quantised)
    # The fast products round rows to bfloat16.
    assert away(fast, eager) < 0.04

    quantised.save_pretrained(tmp_path / "quantised")
    said = json.loads((tmp_path / "quantised" / "config.json").read_text())["quantization_config"]
    assert said == {"quant_method": "moe_hf", "bits": bits, "group_size": config.group_size}
    reloaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits_of(reloaded.eval()), fast)
    assert list(dict(quantized_modules(reloaded))) == list(modules)

    reloaded.dequantize()
    assert not list(quantized_modules(reloaded))
    torch.testing.assert_close(logits_of(reloaded, "sorted"), eager, rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A quantised model of a family of this package."""
    made("gpt2").save_pretrained(tmp_path / "float")
    model = GPT2WithMoE.from_pretrained(tmp_path / "float", quantization_config=MoEQuantizationConfig())
    model.save_pretrained(tmp_path / "quantised")
    return tmp_path / "quantised"


def test_it_generates_with_a_cache_what_it_gives_without(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    model.set_experts_implementation("eager")
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=False)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)


def test_it_stays_in_bfloat16_where_the_rest_is(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    module = next(iter(dict(quantized_modules(model)).values()))
    assert (module.up_codes.dtype, module.up_scales.dtype) == (torch.int8, torch.bfloat16)
    assert module.down_proj_bias.dtype == torch.bfloat16
    assert away(logits_of(model).float(), logits_of(AutoModelForCausalLM.from_pretrained(folder).eval())) < 0.05


def test_a_copy_computes_the_same(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits_of(copy.deepcopy(model)), logits_of(model))


def test_transformers_trainer_refuses_to_train_it_whole(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="fine-tuning on purely quantized models"):
        Trainer(model, TrainingArguments(str(tmp_path / "out"), report_to=[], use_cpu=True))
    assert not any(p.requires_grad for _, m in quantized_modules(model) for p in m.buffers())


@pytest.mark.skipif(not is_available("peft"), reason="peft is in the lora extra")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["mixtral", "llama"])
def test_adapters_train_on_top_and_come_back(kind: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    made(kind).save_pretrained(tmp_path / "float")
    load = {"quantization_config": MoEQuantizationConfig(4)}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "float", **load)
    base.save_pretrained(tmp_path / "quantised")
    before = logits_of(base.eval(), "eager")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    # The first layer's adapters are reached through the quantised experts of its and the later layers.
    after = logits_of(model.eval().base_model.model, "eager")
    assert away(after, before) > 0.01
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "quantised"), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits_of(again.eval().base_model.model, "eager"), after)


@pytest.mark.parametrize(
    ("kind", "config", "text"),
    [
        ("mixtral", {"bits": 4, "group_size": 64}, "rows of 32 weights are no whole groups.*group_size=32 would do"),
        ("dense", {"bits": 8}, "LlamaForCausalLM has no stacked experts that can be quantised"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(kind, config, text, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, **shape)) if kind == "dense" else made(kind)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=text):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=MoEQuantizationConfig(**config))


@pytest.mark.parametrize("family", [True, False], ids=["own", "native"])
def test_a_folder_without_some_codes_is_refused(family: bool, tmp_path: Path) -> None:
    made("gpt2" if family else "mixtral").save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=MoEQuantizationConfig())
    model.save_pretrained(tmp_path / "quantised")
    path = tmp_path / "quantised" / "model.safetensors"
    state = load_file(path)
    lost = next(name for name in state if name.endswith("down_codes"))
    save_file({name: value for name, value in state.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="down_codes"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "quantised")


def test_a_folder_whose_config_was_changed_is_refused(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"].update(bits=4, group_size=32)
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises((CheckpointError, RuntimeError), match=r"up_codes|other sizes|mismatch"):
        GPT2WithMoE.from_pretrained(folder)


def test_quantising_what_is_left_on_the_disk_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="left on the disk; quantise the folder first"):
        AutoModelForCausalLM.from_pretrained(
            folder.parent / "float", device_map={"": "disk"}, quantization_config=MoEQuantizationConfig()
        )


def test_weights_that_are_no_numbers_are_named(tmp_path) -> None:
    model = native_moe("mixtral", intermediate_size=64)
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[2, 3, 4] = torch.nan
    model.save_pretrained(tmp_path)
    for config in (MoEQuantizationConfig(8), MoEQuantizationConfig(4)):
        with pytest.raises(CheckpointError, match=r"1\.mlp\.experts\.down_proj: expert 2 has weights that are NaN"):
            AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
