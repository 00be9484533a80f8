"""What layers are told of a call: padding, packed documents, positions."""

import pytest
import torch
from transformers import DynamicCache

from moe_hf import ConfigError
from moe_hf.models.inputs import Given, layer_inputs

SHAPES = [
    {"position_embedding_type": position, "mixer_short_conv": taps}
    for position in ("learned", "rotary")
    for taps in (0, 3)
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))


class TestPadding:
    @shapes
    def test_right_padding_changes_nothing(self, tiny_model, token_ids, shape) -> None:
        model = tiny_model(**shape)
        padded = torch.cat([token_ids, torch.randint(3, 61, (3, 4))], dim=1)
        mask = torch.ones_like(padded)
        mask[:, 7:] = 0
        out = model(padded, attention_mask=mask).logits[:, :7]
        torch.testing.assert_close(out, model(token_ids).logits, atol=2e-5, rtol=1e-4)

    @shapes
    def test_left_padding_changes_nothing(self, tiny_model, token_ids, shape) -> None:
        model = tiny_model(**shape)
        padded = torch.cat([torch.randint(3, 61, (3, 4)), token_ids], dim=1)
        mask = torch.ones_like(padded)
        mask[:, :4] = 0
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(padded, attention_mask=mask, position_ids=position_ids).logits[:, 4:]
        torch.testing.assert_close(out, model(token_ids).logits, atol=2e-5, rtol=1e-4)

    @pytest.mark.parametrize("taps", [0, 3])
    def test_rotary_positions_need_no_position_ids_for_it(self, tiny_model, token_ids, taps: int) -> None:
        # Only distances count; what is left to keep padding out of the convolution is the mask.
        model = tiny_model(position_embedding_type="rotary", mixer_short_conv=taps)
        padded = torch.cat([torch.randint(3, 61, (3, 4)), token_ids], dim=1)
        mask = torch.ones_like(padded)
        mask[:, :4] = 0
        out = model(padded, attention_mask=mask).logits[:, 4:]
        torch.testing.assert_close(out, model(token_ids).logits, atol=2e-5, rtol=1e-4)

    @shapes
    def test_no_token_sees_the_future(self, tiny_model, token_ids, shape) -> None:
        model = tiny_model(**shape)
        changed = token_ids.clone()
        changed[:, 4:] = (changed[:, 4:] + 5) % 58 + 3
        before, after = model(token_ids).logits, model(changed).logits
        torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-5, rtol=1e-4)
        assert (after[:, 4] - before[:, 4]).abs().max() > 1e-2

    def test_a_ready_mask_is_used_as_it_is(self, tiny_model, token_ids) -> None:
        model = tiny_model(attn_implementation="eager")
        diagonal = torch.full((7, 7), torch.finfo(torch.float32).min).fill_diagonal_(0)[None, None].expand(3, 1, 7, 7)
        out = model(token_ids, attention_mask=diagonal).logits
        single = model(token_ids[:, 4:5], position_ids=torch.tensor([[4]])).logits
        torch.testing.assert_close(out[:, 4:5], single, atol=1e-5, rtol=1e-4)


class TestPackedDocuments:
    LENGTHS = (4, 1, 6)

    @shapes
    @pytest.mark.parametrize("kernel", ["eager", "sdpa"])
    def test_equal_separate_documents_in_logits_and_gradients(self, tiny_model, shape, kernel) -> None:
        documents = [torch.randint(3, 61, (1, length)) for length in self.LENGTHS]
        model = tiny_model(attn_implementation=kernel, **shape)
        packed = model(torch.cat(documents, dim=1), position_ids=self._positions()).logits
        self._probe(packed).backward()
        packed_gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        alone = torch.cat([model(document).logits for document in documents], dim=1)
        self._probe(alone).backward()
        torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
        for name, parameter in model.named_parameters():
            scale = max(1.0, parameter.grad.abs().max().item())
            torch.testing.assert_close(packed_gradients[name], parameter.grad, atol=2e-5 * scale, rtol=0, msg=name)

    @shapes
    def test_the_default_of_keeping_a_cache_does_not_undo_it(self, tiny_model, shape) -> None:
        # transformers looks for packed documents only while there is no cache.
        model = tiny_model(**shape)
        tokens = torch.randint(3, 61, (1, sum(self.LENGTHS)))
        with_cache = model(tokens, position_ids=self._positions(), use_cache=True).logits
        without = model(tokens, position_ids=self._positions(), use_cache=False).logits
        torch.testing.assert_close(with_cache, without)

    @shapes
    def test_each_row_has_borders_of_its_own(self, tiny_model, shape) -> None:
        model = tiny_model(**shape)
        tokens = torch.randint(3, 61, (2, 11))
        rows = torch.cat([self._positions(), torch.arange(11)[None]])
        out = model(tokens, position_ids=rows).logits
        torch.testing.assert_close(out[1:], model(tokens[1:]).logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(out[:1, 5:], model(tokens[:1, 5:]).logits, atol=2e-5, rtol=1e-4)

    def _positions(self) -> torch.Tensor:
        return torch.cat([torch.arange(length) for length in self.LENGTHS])[None]

    def _probe(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


class TestPositions:
    def test_default_positions_count_from_zero(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        assert model(token_ids, position_ids=torch.arange(7)[None]).logits.equal(model(token_ids).logits)
        shifted = model(token_ids, position_ids=torch.arange(7)[None] + 3).logits
        assert (shifted - model(token_ids).logits).abs().max() > 1e-2


def told(config, length: int = 5, **given):
    call = {"attention_mask": None, "position_ids": None, "cache": None, "options": {}, **given}
    return layer_inputs(Given(torch.zeros(2, length, config.hidden_size), **call), config, attends=True)


class TestLayerInputs:
    def test_a_plain_call_has_positions_and_nothing_else(self, tiny_config) -> None:
        inputs = told(tiny_config(attn_implementation="sdpa"))
        assert inputs.position_ids.tolist() == [[0, 1, 2, 3, 4]]
        assert inputs._replace(position_ids=None, attention_options={}) == (None,) * 10 + ({},)

    def test_positions_count_real_tokens(self, tiny_config) -> None:
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
        inputs = told(tiny_config(), attention_mask=mask)
        assert inputs.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
        assert inputs.padding_mask.equal(mask)
        assert inputs.document_starts is None

    def test_restarts_are_documents_where_nothing_is_hidden(self, tiny_config) -> None:
        positions = torch.tensor([[0, 1, 2, 0, 1]])
        inputs = told(tiny_config(), position_ids=positions, attention_mask=torch.ones(2, 5))
        assert inputs.document_starts.nonzero().tolist() == [[0, 3], [1, 3]]
        assert inputs.padding_mask is None

    def test_restarts_behind_a_filled_cache_are_refused(self, tiny_config) -> None:
        config = tiny_config()
        cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers):
            cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), layer)
        assert told(config, cache=cache).position_ids.tolist() == [[3, 4, 5, 6, 7]]
        with pytest.raises(ConfigError, match=r"start again.* not allowed together with a filled cache"):
            told(config, cache=cache, position_ids=torch.tensor([[3, 4, 0, 1, 2]]))

    def test_states_need_a_mask_by_position(self, tiny_config) -> None:
        config = tiny_config(mixer_short_conv=3)
        with pytest.raises(ConfigError, match=r"attention_mask of shape \(2, 1, 5, 5\) is not allowed"):
            told(config, attention_mask=torch.zeros(2, 1, 5, 5))
        with pytest.raises(ConfigError, match="must have 5 columns, for 0 tokens in the cache and 5 new ones"):
            told(config, attention_mask=torch.ones(2, 7))
