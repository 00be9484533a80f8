"""What both decoders record, joined byte by byte."""

import torch

from moe_hf.models.auto import FAMILIES
from moe_hf.models.megabyte.outputs import recordings
from tests.models.families import TINY
from tests.models.megabyte.tiny import CLOSE, B, P, S, greedy, tiny


def test_routing_is_told_byte_by_byte(ids, mask) -> None:
    model = tiny(output_router_logits=True)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False)
        assert [tuple(x.shape) for x in whole.router_logits] == [(B * S, 4)] * 2
        assert [tuple(x.shape) for x in whole.router_experts] == [(B * S, 2)] * 2
        cache, steps = None, []
        for t in range(S):
            given = {"attention_mask": mask[:, : t + 1], "past_key_values": cache, "use_cache": True}
            out = model(ids[:, t : t + 1], **given)
            cache = out.past_key_values
            steps.append(torch.stack(out.router_logits))
        of_steps = torch.stack(steps, dim=2).flatten(1, 2)
        real = mask.flatten().bool()
        torch.testing.assert_close(of_steps[:, real], torch.stack(whole.router_logits)[:, real], **CLOSE)
        # All bytes whose predictions read the same patch have its routing.
        first = model(ids[:1], use_cache=False).router_logits[0]
        assert first[0].equal(first[P - 2])
        assert not first[P - 2].equal(first[P - 1])


def test_states_and_attentions_can_be_recorded(ids) -> None:
    model = tiny(attn_implementation="eager")
    out = model(ids, output_hidden_states=True, output_attentions=True, use_cache=False)
    assert len(out.hidden_states) == 2
    assert out.hidden_states[-1].shape == (B, S, 24)
    assert [tuple(x.shape) for x in out.attentions] == [(B, 4, 4, 4)] * 2 + [(B * 4, 2, P + 2, P + 2)]
    step = greedy(model, ids, output_attentions=True, output_hidden_states=True, return_dict_in_generate=True)
    assert step.hidden_states[1][0].shape == (B, 1, 24)


def test_what_is_recorded_is_asked_for_by_argument_or_else_by_the_configuration() -> None:
    config = FAMILIES["megabyte_moe"].config(**TINY, output_router_logits=True)
    asked = recordings({"output_attentions": True, "output_router_logits": False}, config)
    assert [name for name, wanted in asked.items() if wanted] == ["output_attentions"]
    assert recordings({}, config)["output_router_logits"]
