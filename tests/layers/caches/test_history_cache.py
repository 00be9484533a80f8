"""The history of a Hyena layer: decoding, cutting back, choosing rows, moving."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches import history_cache
from moe_hf.layers.caches.history_cache import HistoryLayer
from moe_hf.layers.caches.states import padding_seen
from moe_hf.ops.sequence import future_fill
from tests.layers.caches.tiny_hyena import CLOSE, make, run


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several epochs of FutureFill within few tokens."""
    monkeypatch.setattr(future_fill, "SHORTEST_EPOCH", 4)
    monkeypatch.setattr(future_fill, "EPOCH_FACTOR", 0.5)


def starts_of(cache: DynamicCache) -> list[int]:
    return [epoch.start for layer in cache.layers for epoch in layer._epochs.values()]


class TestDecoding:
    @pytest.mark.parametrize("sizes", [[1] * 90, [40] + [1] * 50, [3] * 30, [20, 1, 17, 1, 1, 16, 2, 1, 31]])
    def test_in_epochs_gives_what_the_whole_gives(self, model, ids, short_epochs, sizes: list[int]) -> None:
        cache, out, start = model.model.new_cache(), [], 0
        for size in sizes:
            out.append(run(model, ids[:, start : start + size], cache))
            start += size
        assert any(start > 0 for start in starts_of(cache))
        torch.testing.assert_close(torch.cat(out, dim=1), run(model, ids, None), **CLOSE)

    def test_a_padded_prompt_is_followed_by_epochs(self, model, ids, short_epochs) -> None:
        mask = torch.ones(3, 30, dtype=torch.long)
        mask[0, :11] = mask[1, 17:] = mask[2, 5:9] = 0
        cache = model.model.new_cache()
        run(model, ids[:, :30] * mask, cache, attention_mask=mask)
        out = [run(model, ids[:, i : i + 1], cache) for i in range(30, 90)]
        assert any(start > 0 for start in starts_of(cache))
        for row in range(3):
            alone = torch.cat([ids[row, :30][mask[row].bool()], ids[row, 30:]])[None]
            torch.testing.assert_close(torch.cat(out, dim=1)[row], run(model, alone, None)[0, -60:], **CLOSE)

    def test_rows_of_an_epoch_follow_beams(self, model, ids, short_epochs) -> None:
        cache = model.model.new_cache()
        run(model, ids[:, :40], cache)
        for i in range(40, 50):
            run(model, ids[:, i : i + 1], cache)
        beams = torch.tensor([2, 0, 0])
        cache.reorder_cache(beams)
        out = [run(model, ids[beams, i : i + 1], cache) for i in range(50, 60)]
        expected = run(model, ids[beams, :60], None)[:, 50:]
        torch.testing.assert_close(torch.cat(out, dim=1), expected, **CLOSE)

    def test_a_cache_copied_before_a_step_stays_as_it_was(self, model, ids) -> None:
        cache = model.model.new_cache()
        run(model, ids[:, :30], cache)
        other = copy.deepcopy(cache)
        expected = run(model, ids[:, 30:31], cache)
        run(model, ids[:, 50:51], cache)
        torch.testing.assert_close(run(model, ids[:, 30:31], other), expected)

    def test_a_cache_made_in_inference_mode_goes_on_outside(self, model, ids) -> None:
        cache = model.model.new_cache()
        with torch.inference_mode():
            model(ids[:, :20], past_key_values=cache, use_cache=True)
            model(ids[:, 20:21], past_key_values=cache, use_cache=True)
        out = run(model, ids[:, 21:23], cache)
        torch.testing.assert_close(out, run(model, ids[:, :23], None)[:, 21:], **CLOSE)

    def test_generation_with_an_assistant_and_by_lookup_is_greedy_generation(self, model, ids) -> None:
        model.generation_config.eos_token_id = None
        greedy = {"max_new_tokens": 25, "do_sample": False}
        prompt = ids[:1, :12].repeat(1, 2)
        expected = model.generate(prompt, **greedy)
        assert model.generate(prompt, prompt_lookup_num_tokens=4, **greedy).equal(expected)
        assistant = make(num_hidden_layers=1)
        assistant.generation_config.eos_token_id = None
        assert model.generate(prompt, assistant_model=assistant, **greedy).equal(expected)

    @pytest.mark.parametrize("padded", [False, True])
    def test_all_that_is_kept_can_be_changed(self, model, ids, short_epochs, padded: bool) -> None:
        # As offloading does, but so that nothing forgotten goes unnoticed on a machine with one device.
        mask = torch.ones(3, 20, dtype=torch.long)
        if padded:
            mask[0, :7] = mask[1, 15:] = 0
        cache = model.model.new_cache()
        run(model, ids[:, :20] * mask, cache, attention_mask=mask)
        run(model, ids[:, 20:21], cache)
        expected = copy.deepcopy(cache)
        for layer in cache.layers:
            layer.change_states(lambda state: torch.cat([state, state]))
        assert any(start > 0 for start in starts_of(cache))
        twice = torch.cat([ids, ids])
        out = [run(model, twice[:, i : i + 1], cache) for i in range(21, 23)]
        cache.crop(-3)
        out.append(run(model, twice[:, 20:40], cache))
        wanted = [run(model, ids[:, i : i + 1], expected) for i in range(21, 23)]
        expected.crop(-3)
        wanted.append(run(model, ids[:, 20:40], expected))
        wanted = torch.cat(wanted, dim=1)
        torch.testing.assert_close(torch.cat(out, dim=1), torch.cat([wanted, wanted]), **CLOSE)

    def test_offloading_loses_nothing(self, model, ids) -> None:
        cache = model.model.new_cache()
        run(model, ids[:, :20], cache)
        moved = []
        for layer in cache.layers:
            layer.change_states = lambda change, layer=layer: moved.append(HistoryLayer.change_states(layer, change))
            layer.offload()
            layer.prefetch()
        assert len(moved) == 2 * len(cache.layers)
        torch.testing.assert_close(run(model, ids[:, 20:22], cache), run(model, ids[:, :22], None)[:, 20:], **CLOSE)

    @pytest.mark.parametrize("static", [False, True])
    def test_weights_that_change_are_not_outlived_by_their_filter(self, ids, short_epochs, static: bool) -> None:
        model = make()
        mixer = model.model.layers[1].mixer
        cache = StaticCache(model.config, max_cache_len=60) if static else model.model.new_cache()
        run(model, ids[:, :20], cache)
        run(model, ids[:, 20:21], cache)
        for change in ("written to", "replaced"):
            with torch.no_grad():
                if change == "written to":
                    mixer.filter.out.weight.mul_(-3)
                else:
                    mixer.filter.out.weight = torch.nn.Parameter(mixer.filter.out.weight * 0.2)
            # The inputs of the last layer are those of before: only what is made of them is new.
            fresh = copy.deepcopy(cache)
            for layer in fresh.layers:
                layer.__dict__.update({"_filters": {}} if static else {"_epochs": {}})
            out, wanted = (run(model, ids[:, 21:22], each) for each in (cache, fresh))
            torch.testing.assert_close(out, wanted, **CLOSE)


class TestCrop:
    @pytest.mark.parametrize("removed", [0, 1, 7, 39, 40])
    def test_what_follows_is_as_if_the_end_had_never_been(self, model, ids, short_epochs, removed: int) -> None:
        cache = model.model.new_cache()
        run(model, ids[:, :30], cache)
        for i in range(30, 40):
            run(model, ids[:, i : i + 1], cache)
        cache.crop(-removed)
        kept = 40 - removed
        assert int(cache.get_seq_length()) == kept
        others = torch.cat([ids[:, :kept], ids[:, 60:80]], dim=1)
        out = [run(model, others[:, i : i + 1], cache) for i in range(kept, kept + 20)]
        torch.testing.assert_close(torch.cat(out, dim=1), run(model, others, None)[:, kept:], **CLOSE)

    def test_behind_padding_each_row_loses_its_own_tokens(self, model, ids) -> None:
        mask = torch.ones(3, 30, dtype=torch.long)
        mask[0, :11] = mask[1, 21:] = mask[2, 24:27] = 0
        cache = model.model.new_cache()
        run(model, ids[:, :10] * mask[:, :10], cache, attention_mask=mask[:, :10])
        run(model, ids[:, 10:30] * mask[:, 10:], cache, attention_mask=mask)
        cache.crop(-8)
        out = run(model, ids[:, 40:45], cache)
        for row in range(3):
            kept = ids[row, :22][mask[row, :22].bool()]
            alone = torch.cat([kept, ids[row, 40:45]])[None]
            torch.testing.assert_close(out[row], run(model, alone, None)[0, -5:], **CLOSE)

    def test_positions_go_on_behind_the_real_tokens_that_are_left(self, ids) -> None:
        model = make(mixer="hyena,attention", position_embedding_type="learned")
        mask = torch.ones(3, 30, dtype=torch.long)
        mask[0, :11] = mask[1, 21:] = mask[2, 24:27] = 0
        cache = model.model.new_cache()
        run(model, ids[:, :30] * mask, cache, attention_mask=mask)
        cache.crop(-4)
        assert padding_seen(cache).tolist() == [11, 5, 2]
        out = run(model, ids[:, 40:45], cache, attention_mask=torch.cat([mask[:, :26], mask.new_ones(3, 5)], dim=1))
        for row in range(3):
            alone = torch.cat([ids[row, :26][mask[row, :26].bool()], ids[row, 40:45]])[None]
            torch.testing.assert_close(out[row], run(model, alone, None)[0, -5:], **CLOSE)

    def test_more_than_the_short_convolution_remembers_is_an_error(self, model, ids, monkeypatch) -> None:
        monkeypatch.setattr(history_cache, "RECENT_INPUTS", 32)
        cache = model.model.new_cache()
        for i in range(90):
            run(model, ids[:, i : i + 1], cache)
        cache.crop(-20)
        torch.testing.assert_close(run(model, ids[:, 70:71], cache), run(model, ids[:, :71], None)[:, 70:], **CLOSE)
        with pytest.raises(ConfigError, match="60 tokens can't be cut off: only about 32"):
            cache.crop(-60)

    def test_cut_twice_each_row_keeps_no_more_than_it_has(self, ids, monkeypatch) -> None:
        monkeypatch.setattr(history_cache, "RECENT_INPUTS", 32)
        model = make(hyena_short_conv=4)
        mask = torch.ones(3, 80, dtype=torch.long)
        mask[1, 75:] = mask[2, :6] = 0
        cuts = [(20, 9), (3, 2, 1, 17), (10, 10, 5)]
        for cut in cuts:
            cache = model.model.new_cache()
            run(model, ids[:, :80] * mask, cache, attention_mask=mask)
            for count in cut:
                cache.crop(-count)
            kept = 80 - sum(cut)
            out = run(model, ids[:, 80:84], cache)
            for row in range(3):
                alone = torch.cat([ids[row, :kept][mask[row, :kept].bool()], ids[row, 80:84]])[None]
                torch.testing.assert_close(out[row], run(model, alone, None)[0, -4:], **CLOSE)
        for cut in ((25, 8), (1, 1, 28)):
            cache = model.model.new_cache()
            run(model, ids[:, :80] * mask, cache, attention_mask=mask)
            for count in cut[:-1]:
                cache.crop(-count)
            with pytest.raises(ConfigError, match=r"(?s)can't be cut off.*must not be used any more"):
                cache.crop(-cut[-1])

    def test_padding_after_a_cut_is_no_input(self, ids, monkeypatch) -> None:
        monkeypatch.setattr(history_cache, "RECENT_INPUTS", 32)
        model = make()
        cache = model.model.new_cache()
        run(model, ids[:, :60], cache)
        cache.crop(-25)
        mask = torch.ones(3, 45, dtype=torch.long)
        mask[0, 35:] = 0
        run(model, ids[:, 35:45] * mask[:, 35:], cache, attention_mask=mask)
        with pytest.raises(ConfigError, match="16 tokens can't be cut off"):
            copy.deepcopy(cache).crop(-16)
        cache.crop(-15)
        out = run(model, ids[:, 45:47], cache)
        expected = run(model, torch.cat([ids[:, :30], ids[:, 45:47]], dim=1), None)[:, 30:]
        torch.testing.assert_close(out, expected, **CLOSE)

    def test_into_an_earlier_document_is_an_error(self, model, ids) -> None:
        cache = model.model.new_cache()
        positions = torch.cat([torch.arange(12), torch.arange(18)])[None]
        run(model, ids[:1, :30], cache, position_ids=positions)
        cache.crop(-10)
        torch.testing.assert_close(run(model, ids[:1, 20:22], cache), run(model, ids[:1, 12:22], None)[:, -2:], **CLOSE)
        with pytest.raises(ConfigError, match="document before the last"):
            cache.crop(-11)

    def test_only_a_negative_number_is_taken(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            HistoryLayer().crop(3)

    def test_of_nothing(self) -> None:
        layer = HistoryLayer()
        layer.crop(-3)
        assert layer.get_seq_length() == 0


class TestLength:
    def test_text_beyond_the_filter_is_an_error_at_once_and_token_by_token(self, model, ids) -> None:
        long = torch.cat([ids, ids], dim=1)
        with pytest.raises(ConfigError, match="180 tokens is longer than the filter, which has 120"):
            run(model, long, None)
        cache = model.model.new_cache()
        run(model, long[:, :119], cache)
        run(model, long[:, 119:120], cache)
        with pytest.raises(ConfigError, match="121 tokens is longer than the filter"):
            run(model, long[:, 120:121], cache)

    @pytest.mark.parametrize("kind", ["dynamic", "static"])
    @pytest.mark.parametrize("refused", [41, 17, 2])
    def test_a_refused_call_leaves_the_cache_as_it_was(self, ids, kind: str, refused: int) -> None:
        room = 30 + refused - 1
        model = make(max_position_embeddings=room)
        for max_cache_len in (room, 2 * room):
            cache = StaticCache(model.config, max_cache_len=max_cache_len) if kind == "static" else None
            cache = cache or model.model.new_cache()
            run(model, ids[:, :30], cache)
            with pytest.raises(ConfigError, match=f"{30 + refused} tokens"):
                run(model, ids[:, 40 : 40 + refused], cache)
            assert int(cache.get_seq_length()) == 30
            end = min(room, 32)
            out = run(model, ids[:, 30:end], cache)
            torch.testing.assert_close(out, run(model, ids[:, :end], None)[:, 30:], **CLOSE)

    @pytest.mark.parametrize("kind", ["dynamic", "static"])
    def test_a_refused_call_with_padding_leaves_the_cache_as_it_was(self, ids, kind: str) -> None:
        model = make(max_position_embeddings=40)
        cache = StaticCache(model.config, max_cache_len=60) if kind == "static" else model.model.new_cache()
        mask = torch.ones(3, 50, dtype=torch.long)
        mask[0, :12] = mask[1, :4] = mask[2, 35:] = 0
        run(model, ids[:, :30] * mask[:, :30], cache, attention_mask=mask[:, :30])
        # The second row would have 46 tokens.
        with pytest.raises(ConfigError, match="46 tokens is longer than the filter, which has 40"):
            run(model, ids[:, 30:50], cache, attention_mask=mask)
        mask[1, 35:] = 0
        out = run(model, ids[:, 30:50] * mask[:, 30:], cache, attention_mask=mask)
        for row in range(3):
            real = mask[row].bool()
            alone = run(model, ids[row, :50][real][None], None)[0]
            new = int(real[30:].sum())
            torch.testing.assert_close(out[row, real[30:]], alone[-new:], **CLOSE)

    def test_rows_left_out_no_longer_count(self, ids, short_epochs) -> None:
        model = make(max_position_embeddings=40)
        cache = model.model.new_cache()
        mask = torch.ones(3, 38, dtype=torch.long)
        mask[1, :20] = 0
        run(model, ids[:, :38] * mask, cache, attention_mask=mask)
        cache.batch_select_indices(torch.tensor([1]))
        out = [run(model, ids[1:2, i : i + 1], cache) for i in range(38, 60)]
        torch.testing.assert_close(torch.cat(out, dim=1), run(model, ids[1:2, 20:60], None)[:, 18:], **CLOSE)
        with pytest.raises(ConfigError, match="41 tokens"):
            run(model, ids[1:2, 60:61], cache)

    def test_padding_and_other_documents_do_not_count(self, model, ids) -> None:
        long = torch.cat([ids, ids], dim=1)[:1, :150]
        positions = torch.cat([torch.arange(90), torch.arange(60)])[None]
        packed = run(model, long, None, position_ids=positions)
        torch.testing.assert_close(packed[:, 90:], run(model, long[:, 90:], None), **CLOSE)
        mask = torch.ones_like(long)
        mask[:, :60] = 0
        cache = model.model.new_cache()
        run(model, long * mask, cache, attention_mask=mask)
        out = [run(model, ids[:1, i : i + 1], cache) for i in range(30)]
        expected = run(model, torch.cat([long[:, 60:], ids[:1, :30]], dim=1), None)[:, 90:]
        torch.testing.assert_close(torch.cat(out, dim=1), expected, **CLOSE)
