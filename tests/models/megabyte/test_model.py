"""MegaByte: the paper's equations, what each place may know, and rows that stand at different places of their patch."""

import itertools
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.inference.chat_session import ChatSession
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.models.megabyte.model import MegaByteWithMoE, MegaByteWithMoEModel
from moe_hf.models.router_states import RouterStates
from moe_hf.text.tokenizers import byte_tokenizer
from tests.models.families import tiny_family
from tests.models.megabyte.tiny import CLOSE, NEW, PADS, B, P, S, greedy, tiny

STATES = [
    {},
    {"local_lookback": 0},
    {"position_embedding_type": "rotary", "mixer_short_conv": 3},
    {"local_config": {"hidden_size": 24, "num_attention_heads": 2, "mixer_short_conv": 3}},
    {"router_eval_capacity_factor": 0.8, "norm_topk_prob": False},
]


@pytest.fixture(scope="module", params=STATES, ids=["looks-back", "plain", "rotary-conv", "local-conv", "capacity"])
def model(request: pytest.FixtureRequest) -> MegaByteWithMoE:
    return tiny(**request.param)


def uncached(model: MegaByteWithMoE, prompt: torch.Tensor) -> torch.Tensor:
    tokens = prompt
    with torch.no_grad():
        for _ in range(NEW):
            tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def written_out(model: MegaByteWithMoEModel, row: list[int]) -> torch.Tensor:
    """Section 2 of the paper, place by place: the hidden state that predicts each byte from the second on.

    With a lookback, the bytes before the patch stand between the vector of start and those of the patch.
    """
    back = model.config.lookback
    width = model.patching.dim // P
    table, local_table = model.patching.embedding.weight, model.local_decoder.embed_tokens.weight
    told_to: list[torch.Tensor] = []
    hidden = []
    for place in range(1, len(row) + 1):
        k = place // P
        if len(told_to) <= k:
            patches = [model.patching.start]
            patches += [torch.cat([table[byte] for byte in row[j * P : (j + 1) * P]]) for j in range(k)]
            told_to.append(model.global_decoder(inputs_embeds=torch.stack(patches)[None]).last_hidden_state[0, -1])
        told = [model.to_local.weight @ part for part in told_to[k].split(width)]
        places = [None] * (back - k * P) + list(row[max(0, k * P - back) : place])
        vectors = [model.local_start, *(model.local_start if x is None else local_table[x] for x in places)]
        vectors = vectors[:back] + [vector + part for vector, part in zip(vectors[back:], told, strict=False)]
        hidden.append(model.local_decoder(inputs_embeds=torch.stack(vectors)[None]).last_hidden_state[0, -1])
    return torch.stack(hidden)


@pytest.mark.parametrize("lookback", [0, 1, P])
def test_it_is_what_the_paper_writes(lookback: int, ids) -> None:
    model = tiny(local_lookback=lookback).model
    with torch.no_grad():
        hidden = model(ids, use_cache=False).last_hidden_state
        for row in range(B):
            torch.testing.assert_close(hidden[row], written_out(model, ids[row].tolist()), **CLOSE)


def test_a_byte_leaves_all_predictions_up_to_its_own_exactly_as_they_were(ids) -> None:
    # Experts computed token by token, so that a sum does not depend on who else chose an expert.
    model = tiny(experts_implementation="batched_mm")
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        for j in range(S):
            changed = ids.clone()
            changed[:, j] = (changed[:, j] - 2) % 58 + 3
            after = model(changed, use_cache=False).logits
            # The logits at t predict byte t + 1.
            assert after[:, :j].equal(before[:, :j])
            assert not after[:, j].equal(before[:, j])


def test_every_byte_reaches_all_later_predictions(ids) -> None:
    model = tiny()
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        for j in range(S):
            changed = ids.clone()
            changed[:, j] = (changed[:, j] - 2) % 58 + 3
            after = model(changed, use_cache=False).logits
            # Within its patch through the local decoder, behind it through the global one.
            assert ((after - before)[:, j:].abs().amax(dim=-1) > 1e-5).all()


def test_rows_at_different_places_of_their_patch_generate_what_each_does_alone(model, ids, mask) -> None:
    out = greedy(model, ids, attention_mask=mask)
    for row, pad in enumerate(PADS):
        assert out[row, pad:].equal(uncached(model, ids[row : row + 1, pad:])[0])
    # Otherwise equality would prove little.
    assert len(set(out[:, S:].flatten().tolist())) > 4


@pytest.mark.parametrize("mixer", ["retention", "mamba", "hyena", "rwkv"])
def test_any_mixer_may_read_the_patches(mixer: str, ids, mask) -> None:
    model = tiny_family("megabyte", mixer=mixer, num_hidden_layers=2, position_embedding_type="none")
    out = greedy(model, ids, attention_mask=mask)
    for row, pad in enumerate(PADS):
        assert out[row, pad:].equal(uncached(model, ids[row : row + 1, pad:])[0])


@pytest.mark.parametrize("how", [{"use_cache": False}, {"prefill_chunk_size": 5}, {"prefill_chunk_size": 1}])
def test_every_way_of_reading_padded_prompts_generates_the_same(ids, mask, how) -> None:
    model = tiny()
    assert greedy(model, ids, attention_mask=mask, **how).equal(greedy(model, ids, attention_mask=mask))


def test_beams_of_padded_prompts_equal_uncached_beams(ids, mask) -> None:
    model = tiny()
    beams = {"attention_mask": mask, "num_beams": 3, "num_return_sequences": 2}
    assert greedy(model, ids, **beams).equal(greedy(model, ids, use_cache=False, **beams))


@pytest.mark.parametrize("sizes", [[S], [1] * S, [3, 1, 1, 9]])
def test_padding_may_stand_anywhere_and_pieces_may_have_any_size(model, ids, sizes: list[int]) -> None:
    mask = torch.rand(B, S, generator=torch.Generator().manual_seed(2)) < 0.7
    cache, parts, start = None, [], 0
    with torch.no_grad():
        for size in sizes:
            stop = start + size
            given = {"attention_mask": mask[:, :stop].long(), "past_key_values": cache, "use_cache": True}
            out = model(ids[:, start:stop], **given)
            cache, start = out.past_key_values, stop
            parts.append(out.logits)
        logits = torch.cat(parts, dim=1)
        assert torch.isfinite(logits).all()
        for row in range(B):
            alone = model(ids[row : row + 1, mask[row]], use_cache=False).logits
            torch.testing.assert_close(logits[row, mask[row]], alone[0], **CLOSE)


def test_packed_documents_have_patches_of_their_own(model, ids) -> None:
    bounds = [(0, 5, 6, S), (0, S), (0, 4, 8, 13, S)]
    positions = torch.zeros(B, S, dtype=torch.long)
    for row, documents in enumerate(bounds):
        for start, stop in itertools.pairwise(documents):
            positions[row, start:stop] = torch.arange(stop - start)
    with torch.no_grad():
        out = model(ids, position_ids=positions)
        # A state at a row's end would mix its documents.
        assert out.past_key_values is None
        for row, documents in enumerate(bounds):
            for start, stop in itertools.pairwise(documents):
                alone = model(ids[row : row + 1, start:stop], use_cache=False).logits
                torch.testing.assert_close(out.logits[row, start:stop], alone[0], **CLOSE)


def test_padding_has_no_share_in_the_balance_loss(ids) -> None:
    model = tiny(output_router_logits=True)
    mask = torch.ones(1, S, dtype=torch.long)
    mask[:, :5] = 0
    with torch.no_grad():
        padded = model(ids[:1], attention_mask=mask, labels=ids[:1]).aux_loss
        alone = model(ids[:1, 5:], labels=ids[:1, 5:]).aux_loss
    torch.testing.assert_close(padded, alone)


@pytest.mark.parametrize("router_type", ["top_k", "switch", "sigmoid_bias", "expert_choice", "expert_threshold"])
def test_routers_of_both_decoders_learn(router_type: str, ids, mask) -> None:
    k = 1 if router_type == "switch" else 2
    model = tiny(router_type=router_type, num_experts_per_tok=k, router_aux_loss_coef=0.1).train()
    states = RouterStates(model)
    before = [buffer.clone() for buffer in model.buffers()]
    model(ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
    states.step()
    states.close()
    gates = [name for name, _ in model.named_parameters() if name.endswith("gate.weight")]
    assert len(gates) == 2
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in gates)
    for buffer, old in zip(model.buffers(), before, strict=True):
        assert not buffer.equal(old)


def test_capacity_in_training_drops_in_both_decoders(ids) -> None:
    model = tiny(router_capacity_factor=0.5, output_router_logits=True).train()
    out = model(ids, labels=ids, use_cache=False)
    assert len(out.router_dropped) == 2
    assert all(0 < float(dropped) < 1 for dropped in out.router_dropped)


def test_another_attention_reaches_both_decoders(ids) -> None:
    model = tiny()
    before = model(ids, use_cache=False).logits
    model.set_attn_implementation("eager")
    assert model.model.global_decoder.config._attn_implementation == "eager"
    assert model.model.local_decoder.config._attn_implementation == "eager"
    torch.testing.assert_close(model(ids, use_cache=False).logits, before, **CLOSE)


def test_a_chat_streams_whole_characters() -> None:
    answer = "a carp é ✓ 😀"
    tokenizer = byte_tokenizer()
    turns = [{"role": "user", "content": "fish?"}, {"role": "assistant", "content": answer}]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"]
    model = tiny(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    pieces: list[str] = []
    settings = GenerationSettings(do_sample=False, max_new_tokens=30)
    reply = ChatSession(CausalTextModel(model.eval(), tokenizer, "by heart"), settings).ask("fish?", pieces.append)
    assert reply.text == answer
    assert pieces == list(answer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inputs_embeds": torch.zeros(B, S, 24)}, "MegaByte embeds bytes twice"),
        ({"past_key_values": DynamicCache()}, "MegaByte needs a MegaByteCache, got DynamicCache"),
        ({"attention_mask": torch.zeros(B, 1, S, S)}, r"attention_mask of shape \(3, 1, 14, 14\) is not allowed"),
    ],
)
def test_what_it_cannot_read_is_a_clear_error(ids, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny()(ids, **given)


def test_other_caches_of_generate_are_clear_errors(ids) -> None:
    with pytest.raises(ConfigError, match="cache_implementation='static' is not allowed"):
        greedy(tiny(), ids, cache_implementation="static")


def test_new_ids_get_vectors_in_both_embeddings(ids, tmp_path) -> None:
    model = tiny(tie_word_embeddings=True)
    before = model(ids, use_cache=False).logits
    model.resize_token_embeddings(64)
    after = model(ids, use_cache=False).logits
    assert after.shape[-1] == 64
    torch.testing.assert_close(after[..., :61], before)
    assert torch.isfinite(model(torch.full((1, 9), 63), use_cache=False).logits).all()
    model.save_pretrained(tmp_path)
    loaded = MegaByteWithMoE.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.local_decoder.embed_tokens.weight
    torch.testing.assert_close(loaded(ids, use_cache=False).logits, after)
