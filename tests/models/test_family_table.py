"""What every family must do alike: all ways of reading and writing a sequence give what one uncached pass gives."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from moe_hf import CheckpointError, ConfigError
from moe_hf.layers.caches.host import CACHE_NAME, CACHE_NAMES
from moe_hf.layers.caches.megabyte import MegaByteCache
from moe_hf.layers.caches.states import detach_states, rows_of
from moe_hf.models.auto import FAMILIES
from tests.models.families import KINDS, TINY, tiny_family

B, S, NEW = 3, 23, 6
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> PreTrainedModel:
    return tiny_family(kind)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (B, S), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def full(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def greedy(model: PreTrainedModel, prompt: torch.Tensor, **kwargs) -> torch.Tensor:
    kwargs.setdefault("attention_mask", torch.ones_like(prompt))
    return model.generate(prompt, max_new_tokens=NEW, do_sample=False, **kwargs)


def uncached(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    tokens = prompt
    with torch.no_grad():
        for _ in range(NEW):
            tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def require_static_cache(model: PreTrainedModel) -> None:
    if isinstance(model.model.new_cache(), MegaByteCache):
        pytest.skip("a MegaByteCache grows with the patches; a static cache is refused")


def require_embeddings(model: PreTrainedModel) -> None:
    if isinstance(model.model.new_cache(), MegaByteCache):
        pytest.skip("MegaByte embeds bytes twice; embeddings are refused")


def skip_windows(model: PreTrainedModel) -> None:
    if model.config.sliding_window is not None:
        pytest.skip("padding between real tokens takes places in a sliding window; it is refused")


def in_pieces(model: PreTrainedModel, ids: torch.Tensor, sizes: list[int], cache=None, **kwargs) -> torch.Tensor:
    cache = model.model.new_cache() if cache is None else cache
    logits, start = [], 0
    for size in sizes:
        logits.append(model(ids[:, start : start + size], past_key_values=cache, use_cache=True, **kwargs).logits)
        start += size
    assert start == ids.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_is_taken_under_both_names_and_returned_under_the_hosts(kind, model, ids, full, name) -> None:
    family = FAMILIES[model.config.model_type]
    classifier = family.sequence_classification(model.config).eval()
    for part in (model, model.model, classifier, classifier.model):
        with torch.no_grad():
            cache = part(ids[:, :9], attention_mask=torch.ones_like(ids[:, :9]), use_cache=True)[CACHE_NAME]
            rest = part(ids[:, 9:], attention_mask=torch.ones_like(ids), **{name: cache})
        assert rest[CACHE_NAME] is cache
        assert cache.get_seq_length() == S
        if part is model:
            torch.testing.assert_close(rest.logits, full[:, 9:], **CLOSE)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_generation_goes_on_from_a_cache_under_both_names(model, ids, name) -> None:
    cache = model(ids[:, :9], use_cache=True)[CACHE_NAME]
    assert torch.equal(greedy(model, ids, **{name: cache}), uncached(model, ids))


def test_what_no_forward_reads_is_refused_by_name(model, ids) -> None:
    family = FAMILIES[model.config.model_type]
    classifier = family.sequence_classification(model.config).eval()
    two = {name: model.model.new_cache() for name in CACHE_NAMES}
    for part in (model, model.model, classifier):
        for given in (torch.ones(B, S), model.model.new_cache(), [torch.ones(B, S)], {"mask": torch.ones(B, S)}):
            with pytest.raises(ConfigError, match="layer_past"):
                part(ids, layer_past=given)
        with pytest.raises(ConfigError, match="cache and past_key_values are two names"):
            part(ids, **two)


def documents(name: str, lengths: list[list[int]]) -> dict[str, torch.Tensor]:
    """What says, in one of the languages of packed rows, where their documents begin."""
    ends = torch.tensor([0, *(length for row in lengths for length in row)]).cumsum(0).int()
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    numbers = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]).int()
    return {
        "position_ids": {"position_ids": positions},
        "ones": {"position_ids": positions, "attention_mask": torch.ones_like(positions)},
        "seq_idx": {"seq_idx": numbers},
        "cu_seqlens": {"cu_seqlens": ends},
        "collator": {"seq_idx": numbers, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 11},
    }[name]


@pytest.mark.parametrize("lengths", [[[7, 5, 11]], [[7, 5, 11], [9, 14], [1, 2, 20]]], ids=["one row", "three rows"])
@pytest.mark.parametrize("name", ["position_ids", "ones", "seq_idx", "cu_seqlens", "collator"])
def test_packed_documents_are_read_as_if_each_stood_alone(model, ids, name, lengths) -> None:
    with torch.no_grad():
        packed = model(ids[: len(lengths)], use_cache=False, **documents(name, lengths)).logits
        for row, parts in enumerate(lengths):
            for part, logits in zip(ids[row].split(parts), packed[row].split(parts), strict=True):
                torch.testing.assert_close(logits, model(part[None], use_cache=False).logits[0], **CLOSE)


def test_documents_that_cannot_be_kept_apart_are_refused(model, ids) -> None:
    packed = documents("position_ids", [[7, 5, 11]] * B)
    padding = torch.ones_like(ids)
    padding[0, 20:] = 0
    with pytest.raises(ConfigError, match="not allowed together with an attention_mask that hides something"):
        model(ids, attention_mask=padding, **packed)
    cache = model.model.new_cache()
    model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ConfigError, match=r"not allowed together with a .*cache"):
        model(ids, past_key_values=cache, **packed)
    with pytest.raises(ConfigError, match="begin documents at different places"):
        model(ids, seq_idx=documents("seq_idx", [[9, 14]] * B)["seq_idx"], **packed)
    with pytest.raises(ConfigError, match=r"cu_seqlens=.*must rise from 0 to 69"):
        model(ids, cu_seqlens=torch.tensor([0, 23, 50, 69]))
    with pytest.raises(ConfigError, match=r"seq_idx of shape \(2, 23\) is not allowed"):
        model(ids, seq_idx=torch.zeros(2, S, dtype=torch.int))


@pytest.mark.parametrize(("held", "given"), [(1, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("width", [1, 4])
def test_a_cache_of_other_rows_is_refused(model, ids, held, given, width) -> None:
    cache = model.model.new_cache()
    with torch.no_grad():
        assert not cache.is_initialized
        model(ids[:held, :9], past_key_values=cache, use_cache=True)
        assert cache.is_initialized
        with pytest.raises(ConfigError, match=f"a cache of {held} rows is not allowed for {given} rows"):
            model(ids[:given, 9 : 9 + width], past_key_values=cache, use_cache=True)
        cache.reset()
        # transformers 5.17 zeroes keys and values, and keeps their rows.
        if rows_of(cache) is None:
            model(ids[:given, :9], past_key_values=cache, use_cache=True)


def test_the_future_leaves_no_trace(model, ids, full) -> None:
    changed = ids.clone()
    changed[:, 11:] = (changed[:, 11:] + 7) % 50 + 3
    with torch.no_grad():
        logits = model(changed, use_cache=False).logits
    torch.testing.assert_close(logits[:, :11], full[:, :11], **CLOSE)
    assert (logits[:, 11:] - full[:, 11:]).abs().max() > 0.01


def test_the_past_matters(model, ids, full) -> None:
    changed = ids.clone()
    changed[:, 2] = (changed[:, 2] + 7) % 50 + 3
    with torch.no_grad():
        logits = model(changed, use_cache=False).logits
    assert (logits[:, 6:] - full[:, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [[1] * S, [7, 7, 7, 2], [13, 10], [1, 22], [20, 1, 1, 1]])
def test_pieces_of_any_size_give_what_the_whole_gives(model, ids, full, sizes: list[int]) -> None:
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(model, ids, sizes), full, **CLOSE)


def test_a_cache_counts_its_tokens_and_can_be_emptied(model, ids, full) -> None:
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
        assert int(cache.get_seq_length()) == S
        if any(getattr(layer, "keys", None) is not None for layer in cache.layers):
            # transformers' own dynamic layers keep zeros of the old length.
            pytest.skip("reset of a dynamic key-value cache is not an empty cache in transformers")
        cache.reset()
        assert int(cache.get_seq_length()) == 0
        torch.testing.assert_close(in_pieces(model, ids, [S], cache), full, **CLOSE)


@pytest.mark.parametrize("positions", ["given", "left out"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, ids, side: str, positions: str) -> None:
    lengths = [S, 9, 14]
    mask = torch.zeros(B, S, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    if side == "right":
        mask = mask.flip(1)
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if positions == "given" else {}
    with torch.no_grad():
        logits = model(ids * mask, attention_mask=mask, **given).logits
        for row in range(B):
            real = mask[row].bool()
            alone = model(ids[row : row + 1, real], use_cache=False).logits
            torch.testing.assert_close(logits[row, real], alone[0], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_pieces_without_positions_go_on_where_the_real_tokens_end(model, ids, side: str) -> None:
    lengths, cut = [S - 4, 9, 14], S - 4
    mask = torch.ones(B, S, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, : cut - length] = 0
    if side == "right":
        mask[:, :cut] = mask[:, :cut].flip(1)
    if side == "right":
        skip_windows(model)
    cache, logits = model.model.new_cache(), []
    with torch.no_grad():
        for begin, end in ((0, cut), (cut, S - 1), (S - 1, S)):
            piece = {"attention_mask": mask[:, :end], "past_key_values": cache, "use_cache": True}
            logits.append(model(ids[:, begin:end] * mask[:, begin:end], **piece).logits)
        for row in range(B):
            alone = model(ids[row : row + 1, mask[row].bool()], use_cache=False).logits[0]
            torch.testing.assert_close(torch.cat(logits, dim=1)[row, mask[row].bool()], alone, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_alone_need_no_mask_to_go_on_behind_padding(model, ids, side: str) -> None:
    if set(model.config.layer_types) != {"recurrent"} or isinstance(model.model.new_cache(), MegaByteCache):
        pytest.skip("keys of padding must be hidden again at each call")
    mask = torch.ones(B, S, dtype=torch.long)
    mask[1, 3:9] = 0
    mask[1, :3] = 0 if side == "left" else 1
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids[:, :9], attention_mask=mask[:, :9], past_key_values=cache, use_cache=True)
        logits = in_pieces(model, ids[:, 9:], [1, 4, S - 14], cache)[1]
        alone = model(ids[1:2, mask[1].bool()], use_cache=False).logits[0, -(S - 9) :]
        torch.testing.assert_close(logits, alone, **CLOSE)


def test_after_right_padding_the_next_token_follows_the_last_real_one(model, ids) -> None:
    # transformers 5.23 gets this wrong for mamba, mamba2, falcon_mamba, jamba and qwen3_next.
    skip_windows(model)
    lengths = [S - 2, 9, 14]
    mask = torch.zeros(B, S - 1, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    cache = model.model.new_cache()
    following = ids[:, -1:]
    with torch.no_grad():
        model(
            ids[:, :-1] * mask,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
        )
        longer = torch.cat([mask, torch.ones(B, 1, dtype=torch.long)], dim=1)
        positions = mask.sum(1, keepdim=True)
        logits = model(following, attention_mask=longer, position_ids=positions, past_key_values=cache).logits
        for row, length in enumerate(lengths):
            alone = torch.cat([ids[row : row + 1, :length], following[row : row + 1]], dim=1)
            torch.testing.assert_close(logits[row, -1], model(alone, use_cache=False).logits[0, -1], **CLOSE)


def test_packed_documents_do_not_see_each_other(model, ids) -> None:
    positions = torch.cat([torch.arange(9), torch.arange(1), torch.arange(S - 10)])[None]
    with torch.no_grad():
        packed = model(ids[:1], position_ids=positions, use_cache=False).logits
        for start, stop in ((0, 9), (9, 10), (10, S)):
            alone = model(ids[:1, start:stop], use_cache=False).logits
            torch.testing.assert_close(packed[:, start:stop], alone, **CLOSE)


def test_greedy_generation_is_repeated_argmax(model, ids) -> None:
    assert greedy(model, ids).equal(uncached(model, ids))


def test_a_left_padded_batch_generates_what_each_row_alone_does(model, ids) -> None:
    mask = torch.ones_like(ids)
    mask[1, :8] = mask[2, :15] = 0
    out = greedy(model, ids * mask, attention_mask=mask)
    for row in range(B):
        alone = greedy(model, ids[row : row + 1, mask[row].bool()])
        assert out[row, S:].equal(alone[0, -NEW:])


def test_prefill_in_chunks_generates_the_same(model, ids) -> None:
    assert greedy(model, ids, prefill_chunk_size=5).equal(greedy(model, ids))


def test_beams_with_and_without_a_cache_agree(model, ids) -> None:
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert greedy(model, ids, **beams).equal(greedy(model, ids, use_cache=False, **beams))


def test_sampling_with_and_without_a_cache_agrees(model, ids) -> None:
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        runs.append(model.generate(ids, max_new_tokens=NEW, do_sample=True, top_k=8, use_cache=use_cache))
    assert runs[0].equal(runs[1])


def test_generation_goes_on_from_a_returned_cache(model, ids) -> None:
    first = greedy(model, ids[:, :-4], return_dict_in_generate=True)
    more = torch.cat([first.sequences, ids[:, -4:]], dim=1)
    assert greedy(model, more, past_key_values=first.past_key_values).equal(greedy(model, more))


def test_a_static_cache_generates_the_same(model, ids) -> None:
    require_static_cache(model)
    mask = torch.ones_like(ids)
    mask[1, :8] = 0
    static = greedy(model, ids * mask, attention_mask=mask, cache_implementation="static")
    assert static.equal(greedy(model, ids * mask, attention_mask=mask))


def test_a_static_cache_can_be_emptied_and_used_again(model, ids, full) -> None:
    require_static_cache(model)
    cache = StaticCache(model.config, max_cache_len=S + 2)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(in_pieces(model, ids, [20, 1, 2], cache), full, **CLOSE)
            cache.reset()


def test_rows_of_a_cache_can_be_repeated_and_chosen(model, ids, full) -> None:
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids[:, :20], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([4, 1, 3]))
        rows = torch.tensor([2, 0, 1])
        logits = model(ids[rows, 20:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(logits, full[rows, 20:], **CLOSE)


def test_gradients_flow_through_a_carried_state_until_it_is_detached(model, ids) -> None:
    require_embeddings(model)
    embed = model.get_input_embeddings()

    def gradient_of_the_past(detach: bool) -> torch.Tensor:
        cache = model.model.new_cache()
        early = embed(ids[:, :12]).detach().requires_grad_()
        model(inputs_embeds=early, past_key_values=cache, use_cache=True)
        if detach:
            detach_states(cache)
        late = model(inputs_embeds=embed(ids[:, 12:]), past_key_values=cache, use_cache=True).logits
        (grad,) = torch.autograd.grad(late.square().sum(), early, allow_unused=True)
        return torch.zeros_like(early) if grad is None else grad

    whole = embed(ids).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs_embeds=whole).logits[:, 12:].square().sum(), whole)
    carried = gradient_of_the_past(detach=False)
    error = (carried - expected[:, :12]).norm() / expected[:, :12].norm()
    assert error < 1e-4
    assert gradient_of_the_past(detach=True).abs().max() == 0


def test_gradient_checkpointing_changes_nothing(kind: str, ids, checkpointed) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_family(kind).train()
        if checkpointing:
            checkpointed(model)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_half_precision_stays_near(kind: str, ids, full) -> None:
    model = tiny_family(kind).to(torch.bfloat16)
    with torch.no_grad():
        half = model(ids, use_cache=False).logits
        pieces = in_pieces(model, ids, [15, 1, 7])
    assert half.dtype == torch.bfloat16
    # Routers near a tie may choose another expert, which is a jump for that token.
    for logits in (half, pieces):
        error = (logits.float() - full).norm(dim=-1) / full.norm(dim=-1)
        assert error.median() < 0.05


def test_made_or_loaded_in_half_precision_it_keeps_what_needs_single_precision(kind: str, ids, full, tmp_path) -> None:
    kept = {
        "mamba": {"A_log", "D"},
        "hyena": {"frequency", "skip", "weight", "bias"},
        "rwkv4": {"time_decay", "time_first"},
    }
    expected = next((names for family, names in kept.items() if kind.startswith(family)), set())
    model_type, fields = KINDS[kind]
    fresh = AutoModelForCausalLM.from_config(FAMILIES[model_type].config(**{**TINY, **fields}), dtype=torch.bfloat16)
    original = tiny_family(kind)
    original.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    weights = dict(original.named_parameters())
    for model in (fresh, loaded):
        single = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
        assert expected <= {name.rpartition(".")[2] for name in single}
        assert bool(single) == bool(expected)
        assert model.dtype == torch.bfloat16
    for name in single:
        assert loaded.get_parameter(name).equal(weights[name]), name
    with torch.no_grad():
        logits = loaded(ids, use_cache=False).logits
    assert logits.dtype == torch.bfloat16
    assert ((logits.float() - full).norm(dim=-1) / full.norm(dim=-1)).median() < 0.05

    loaded.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name: weight.dtype for name, weight in again.named_parameters()} == {
        name: weight.dtype for name, weight in loaded.named_parameters()
    }
    assert in_pieces(again, ids, [15, 1, 7]).dtype == torch.bfloat16


def test_it_compiles_into_one_graph_with_the_same_gradients(kind: str, ids) -> None:
    torch.compiler.reset()
    model = tiny_family(kind, num_hidden_layers=2, mlp_layer_types=["dense"] * 2).train()
    loss = model(ids, labels=ids, use_cache=False).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    compiled = torch.compile(model.model, fullgraph=True, backend="aot_eager")
    hidden = compiled(ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden) / model.config.logits_scaling
    loss = model.loss_function(logits, ids, vocab_size=61)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiled_for_several_lengths_it_takes_a_mask() -> None:
    torch.compiler.reset()
    model = tiny_family("mamba1", num_hidden_layers=1, mlp_layer_types=["dense"])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids = torch.arange(22).view(2, 11)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        for length in (11, 7):
            compiled(ids[:, :length], use_cache=False)
        ours = compiled(ids, attention_mask=mask, use_cache=False).logits
        full = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(ours[mask == 1], full[mask == 1], rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(model, ids, full, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(loaded) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, use_cache=False).logits, full)


def test_no_tensor_starts_at_random_or_is_dropped_unasked(model, ids, full, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    for lost in list(whole)[:: max(1, len(whole) // 6)]:
        save_file({name: x for name, x in whole.items() if name != lost}, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"lacks 1 of the model's tensors \({re.escape(lost)}\)"):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    # By the name of a layer more, which `config.json` does not have.
    extra = next(name.replace(".0.", ".77.", 1) for name in whole if ".0." in name)
    save_file({**whole, extra: torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"no place for \({re.escape(extra)}\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, use_cache=False).logits, full)


def test_a_head_that_a_task_adds_is_the_one_thing_that_starts_afresh(kind, model, tmp_path) -> None:
    family = FAMILIES[KINDS[kind][0]]
    model.save_pretrained(tmp_path)
    classifier = family.sequence_classification.from_pretrained(tmp_path, num_labels=3)
    classifier.save_pretrained(tmp_path / "classifier")
    family.model.from_pretrained(tmp_path / "classifier").save_pretrained(tmp_path / "body")
    for folder in ("classifier", "body"):
        again = family.causal_lm.from_pretrained(tmp_path / folder)
        for name, tensor in again.model.state_dict().items():
            assert tensor.equal(model.model.state_dict()[name]), name
    file = tmp_path / "classifier" / "model.safetensors"
    headless = {name: x for name, x in load_file(file).items() if name != "score.weight"}
    save_file(headless, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's tensors \(score.weight\)"):
        family.sequence_classification.from_pretrained(tmp_path / "classifier")


@pytest.mark.parametrize("how", ["on loading", "in an older file", "in the configuration"])
def test_a_longer_limit_leaves_old_logits_as_they_were_or_is_refused(model, ids, full, tmp_path, how: str) -> None:
    model.save_pretrained(tmp_path)
    if how == "in an older file":
        stored = json.loads((tmp_path / "config.json").read_text())
        stored.pop("hyena_filter_time_base")
        (tmp_path / "config.json").write_text(json.dumps(stored))
    given = {"max_position_embeddings": 2 * TINY["max_position_embeddings"]}
    if how == "in the configuration":
        config = type(model.config).from_pretrained(tmp_path)
        config.max_position_embeddings = given["max_position_embeddings"]
        given = {"config": config}
    if any("embed_positions" in name for name, _ in model.named_parameters()):
        with pytest.raises(CheckpointError, match=r"embed_positions\.weight"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **given)
        return
    longer = AutoModelForCausalLM.from_pretrained(tmp_path, **given).eval()
    assert longer.config.max_position_embeddings == 2 * TINY["max_position_embeddings"]
    with torch.no_grad():
        torch.testing.assert_close(longer(ids, use_cache=False).logits, full, **CLOSE)
        assert longer(ids.repeat(1, 6)).logits.isfinite().all()


def test_fresh_weights_are_finite_and_every_parameter_is_drawn(kind: str) -> None:
    model_type, fields = KINDS[kind]
    family = FAMILIES[model_type]
    with torch.device("meta"):
        model = family.causal_lm(family.config(**{**TINY, **fields}))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
    for module in model.modules():
        module._is_hf_initialized = False
    model.initialize_weights()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.isfinite(tensor).all(), name


def test_the_classifier_reads_the_last_real_token(kind: str, ids) -> None:
    model_type, fields = KINDS[kind]
    family = FAMILIES[model_type]
    torch.manual_seed(0)
    model = family.sequence_classification(family.config(**{**TINY, **fields, "num_labels": 3})).eval()
    for real in (slice(0, 9), slice(S - 9, S)):
        mask = torch.ones_like(ids)
        mask[1] = 0
        mask[1, real] = 1
        with torch.no_grad():
            logits = model(ids * mask, attention_mask=mask).logits
            torch.testing.assert_close(logits[1], model(ids[1:2, real]).logits[0], **CLOSE)
        assert logits.shape == (B, 3)


@pytest.mark.parametrize(
    "given", [{}, {"num_items_in_batch": 0}, {"num_items_in_batch": torch.tensor(0)}, {"shifted": 1}]
)
def test_a_step_without_targets_contributes_exactly_nothing(kind: str, ids, given) -> None:
    model = tiny_family(kind).train()
    nothing = torch.full_like(ids, -100)
    # Not even a real token, in a row or anywhere.
    for mask in (torch.ones_like(ids), (torch.arange(B) > 0).long()[:, None].expand_as(ids), torch.zeros_like(ids)):
        labels = {"shift_labels": nothing} if "shifted" in given else {**given, "labels": nothing}
        loss = model(ids, attention_mask=mask, **labels).loss
        loss.backward()
        assert loss.item() == 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


def test_a_row_of_nothing_but_padding_disturbs_no_gradient(kind: str, ids) -> None:
    model = tiny_family(kind).train()
    mask = torch.ones_like(ids)
    mask[0] = 0
    labels = ids.masked_fill(mask == 0, -100)
    loss = model(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_a_classifier_without_labels_of_a_step_contributes_exactly_nothing(kind: str, ids) -> None:
    model_type, fields = KINDS[kind]
    family = FAMILIES[model_type]
    model = family.sequence_classification(family.config(**{**TINY, **fields, "num_labels": 3})).train()
    loss = model(ids, labels=torch.full((B,), -100)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_a_cache_of_keys_and_values_alone_is_refused_where_states_are_kept(model, ids) -> None:
    if set(model.config.layer_types) <= {"full_attention", "sliding_attention"}:
        return
    with pytest.raises(ValueError, match="has no place for the state"):
        model(ids, past_key_values=DynamicCache(), use_cache=True)
