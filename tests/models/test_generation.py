"""Generation: every way of decoding gives what uncached decoding gives, for every kind of layer state."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from moe_hf import ConfigError, GPT2WithMoE

NEW = 8
SHAPES = [
    {"position_embedding_type": position, "mixer_short_conv": taps}
    for position in ("learned", "rotary")
    for taps in (0, 3)
]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def model(request: pytest.FixtureRequest, tiny_model) -> GPT2WithMoE:
    # A head of its own: a tied one with such large weights repeats the last token for ever.
    model = tiny_model(tie_word_embeddings=False, **request.param)
    # Loud mixers: each next token depends on many of those before it.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mixer.o_proj.weight *= 8
            layer.mixer.q_proj.weight *= 2
    # Never stop early: lengths are compared.
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def padded(token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of seven, four and two tokens, with their mask."""
    mask = torch.ones_like(token_ids)
    mask[1, :3] = 0
    mask[2, :5] = 0
    return token_ids * mask, mask


def uncached(model: GPT2WithMoE, prompt: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """Greedy decoding that reads the whole sequence anew for each token."""
    tokens = prompt
    with torch.no_grad():
        for _ in range(new):
            tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def greedy(model: GPT2WithMoE, prompt: torch.Tensor, **kwargs) -> torch.Tensor:
    return model.generate(prompt, max_new_tokens=kwargs.pop("new", NEW), do_sample=False, **kwargs)


def test_the_tokens_are_no_trivial_repetition(model, token_ids) -> None:
    # Otherwise equality below would prove little.
    new = uncached(model, token_ids)[:, 7:]
    assert sum(len(set(row.tolist())) for row in new) >= 6


def test_greedy_equals_uncached(model, token_ids) -> None:
    assert greedy(model, token_ids).equal(uncached(model, token_ids))


def test_prompts_of_different_lengths_do_not_disturb_each_other(model, padded) -> None:
    prompts, mask = padded
    out = greedy(model, prompts, attention_mask=mask)
    for row, length in enumerate(mask.sum(-1).tolist()):
        alone = prompts[row : row + 1, 7 - length :]
        assert out[row, 7 - length :].equal(uncached(model, alone)[0])


@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 1},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_every_kind_of_cache_gives_the_same(model, padded, how) -> None:
    prompts, mask = padded
    assert greedy(model, prompts, attention_mask=mask, **how).equal(greedy(model, prompts, attention_mask=mask))


def test_beams_equal_uncached_beams(model, padded) -> None:
    prompts, mask = padded
    results = [
        greedy(model, prompts, attention_mask=mask, num_beams=3, num_return_sequences=2, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert results[0].shape == (6, 7 + NEW)
    assert results[0].equal(results[1])


def test_sampling_equals_uncached_sampling_with_the_same_seed(model, padded) -> None:
    prompts, mask = padded
    results = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        results.append(
            model.generate(
                prompts,
                attention_mask=mask,
                max_new_tokens=NEW,
                do_sample=True,
                top_k=20,
                top_p=0.9,
                use_cache=use_cache,
            )
        )
    assert results[0].equal(results[1])
    assert not results[0].equal(greedy(model, prompts, attention_mask=mask))


def test_embeddings_in_place_of_ids(model, padded) -> None:
    prompts, mask = padded
    out = greedy(model, None, inputs_embeds=model.get_input_embeddings()(prompts), attention_mask=mask)
    assert out.equal(greedy(model, prompts, attention_mask=mask)[:, 7:])


def test_going_on_from_a_returned_cache(model, padded) -> None:
    prompts, mask = padded
    whole = greedy(model, prompts, attention_mask=mask)
    first = greedy(model, prompts, attention_mask=mask, new=3, return_dict_in_generate=True)
    longer = torch.cat([mask, torch.ones(3, 3, dtype=mask.dtype)], dim=1)
    second = greedy(model, first.sequences, attention_mask=longer, past_key_values=first.past_key_values, new=NEW - 3)
    assert second.equal(whole)


def test_a_user_s_next_turn_on_a_returned_cache(model, token_ids) -> None:
    first = greedy(model, token_ids[:1], new=3, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, token_ids[1:2, :4]], dim=1)
    assert greedy(model, turn, past_key_values=first.past_key_values, new=4).equal(uncached(model, turn, 4))


@pytest.mark.parametrize("chunks", [(7,), (3, 4), (1, 5, 1), (1,) * 7])
def test_logits_of_chunks_equal_those_of_the_whole(model, token_ids, chunks: tuple[int, ...]) -> None:
    cache, parts, start = None, [], 0
    for length in chunks:
        out = model(token_ids[:, start : start + length], past_key_values=cache, use_cache=True)
        cache, start = out.past_key_values, start + length
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(token_ids).logits, atol=2e-5, rtol=1e-4)


def test_padded_chunks_equal_the_padded_whole(model, padded) -> None:
    prompts, mask = padded
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(prompts, attention_mask=mask, position_ids=position_ids).logits
    cache, parts = None, []
    for start, stop in ((0, 2), (2, 6), (6, 7)):
        out = model(
            prompts[:, start:stop],
            attention_mask=mask[:, :stop],
            position_ids=position_ids[:, start:stop],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        parts.append(out.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, dim=1)[real], whole[real], atol=2e-5, rtol=1e-4)


def test_a_cache_is_made_only_when_wanted(model, token_ids) -> None:
    assert model(token_ids).past_key_values.get_seq_length() == 7
    assert model(token_ids, use_cache=False).past_key_values is None


def test_stops_at_the_end_token(model, token_ids) -> None:
    end = uncached(model, token_ids[:1], 4)[0, -1].item()
    out = greedy(model, token_ids[:1], eos_token_id=end)
    assert out[0, -1] == end
    assert len(out[0]) <= 11


@pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
def test_every_backend_generates_the_same(tiny_model, token_ids, backend: str) -> None:
    expected = greedy(tiny_model(experts_implementation="eager", tie_word_embeddings=False), token_ids)
    assert greedy(tiny_model(experts_implementation=backend, tie_word_embeddings=False), token_ids).equal(expected)


def test_recordings_during_generation(tiny_model, token_ids) -> None:
    model = tiny_model(attn_implementation="eager", output_router_logits=True)
    out = greedy(
        model, token_ids, new=3, return_dict_in_generate=True, output_attentions=True, output_hidden_states=True
    )
    assert len(out.attentions) == len(out.hidden_states) == 3
    assert out.attentions[1][0].shape == (3, 4, 1, 8)


def test_running_past_the_learned_positions_is_a_clear_error(tiny_model) -> None:
    with pytest.raises(ConfigError, match="position 40 is beyond max_position_embeddings=40"):
        greedy(tiny_model(eos_token_id=None), torch.full((1, 38), 5), new=5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_static_cache_gives_the_same(tiny_model, padded) -> None:
    shape = {"position_embedding_type": "rotary", "mixer_short_conv": 3, "num_hidden_layers": 2}
    model = tiny_model(tie_word_embeddings=False, **shape)
    prompts, mask = padded
    expected = greedy(model, prompts, attention_mask=mask, eos_token_id=None)
    cache = StaticCache(config=model.config, max_cache_len=7 + NEW)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    forward = torch.compile(model.forward, fullgraph=True)
    with torch.no_grad():
        out = model(prompts, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1:]
        tokens = [out.argmax(-1)]
        for step in range(1, NEW):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], dim=1)
            out = forward(
                tokens[-1], attention_mask=mask, position_ids=positions[:, -1:] + step, past_key_values=cache
            ).logits
            tokens.append(out.argmax(-1))
    assert torch.cat(tokens, dim=1).equal(expected[:, 7:])


def test_a_filled_cache_of_the_user_is_gone_on_with(tiny_model, token_ids) -> None:
    model = tiny_model()
    cache = DynamicCache(config=model.config)
    model(token_ids[:, :4], past_key_values=cache)
    mask = torch.ones_like(token_ids)
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(token_ids, **given)[:, 7:]
    answer = model.generate(token_ids, past_key_values=cache, **given)
    assert answer[:, 7:].equal(expected)
    # All of the text but its last token has gone through the user's own cache.
    assert cache.get_seq_length() == 12
