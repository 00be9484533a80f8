"""Continuous batching: token for token what each prompt gets alone, or a refusal that names the layers."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from moe_hf import ConfigError
from moe_hf.models.batching import require_pages
from tests.models.families import KINDS, tiny_family

# transformers 5.17 has another name.
PAGE_SIZE = "page_size" if "page_size" in ContinuousBatchingConfig.__dataclass_fields__ else "block_size"
PAGED = ["gpt2", "llama", "llama-window", "llama-behind"]
REFUSED = {
    "mamba-llama": r"state \(mamba\)",
    "megabyte": "reads bytes in patches",
    "hyena-attention": r"state \(hyena\)",
    "gpt2-rotary-conv": r"a short convolution or token shift beside attention",
    "retnet": r"state \(retention\)",
    "rwkv4": r"state \(rwkv\)",
    "mamba-interleaved": r"state \(mamba, none\)",
}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in (5, 17, 9, 1, 40)]


@pytest.mark.parametrize(("kind", "attention"), [*((kind, "sdpa") for kind in PAGED), ("llama-window", "eager")])
def test_a_batch_gets_what_each_prompt_gets_alone(kind, attention) -> None:
    model = tiny_family(kind)
    model.set_attn_implementation(attention)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=60, pad_token_id=0)
    alone = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        new = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
        alone.append(new.tolist())
    # Room for 2 requests of the 5, and prompts in pieces: some wait, some are read while others are written.
    pages = ContinuousBatchingConfig(**{PAGE_SIZE: 8}, num_blocks=24, max_batch_tokens=16)
    results = model.generate_batch(prompts(), generation_config=config, continuous_batching_config=pages)
    assert [result.generated_tokens for result in results.values()] == alone
    assert len({token for tokens in alone for token in tokens}) > 10
    # And the model is what it was.
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("kind", REFUSED)
def test_layers_without_pages_are_refused_by_name(kind) -> None:
    model = tiny_family(kind)
    with pytest.raises(ConfigError, match=REFUSED[kind]):
        model.generate_batch([[5, 6]], generation_config=GenerationConfig(max_new_tokens=2))


def test_attention_that_picks_its_keys_is_refused() -> None:
    model = tiny_family("gpt2")
    require_pages(model.config)
    model.set_attn_implementation("topk_sparse")
    with pytest.raises(ConfigError, match="attends by topk_sparse"):
        require_pages(model.config)


def test_every_kind_of_model_is_in_one_list_or_refused() -> None:
    for kind in KINDS:
        if kind not in PAGED:
            with pytest.raises(ConfigError, match="continuous batching pages"):
                require_pages(tiny_family(kind).config)
