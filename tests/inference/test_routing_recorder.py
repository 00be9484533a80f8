"""Routing is taken down in the passes that made the answer, from any family, and leaves the model as it was."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_hf.inference.routing_recorder import RoutingRecorder, RoutingTrace, sparse_layers
from moe_hf.inference.settings import GenerationSettings
from moe_hf.inference.streaming import Piece
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.models.found_routers import find_routers
from tests.models.native_moes import NATIVE_MOES, native_moe

SAMPLED = GenerationSettings(temperature=5.0, top_p=1.0, top_k=0, max_new_tokens=12)

# Two layers, four tokens of which three were fed back, two of four experts each.
TRACE = RoutingTrace(
    pieces=(Piece("a", 1), Piece("é\n", 2), Piece("z", 1)),
    layers=(1, 3),
    num_experts=4,
    experts_LTK=torch.tensor([[[0, 1], [1, 0], [0, 1]], [[2, 3], [3, 2], [3, 0]]]),
    weights_LTK=torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3]]]),
)


def ask(model, text="hi", settings=SAMPLED, seed=0, **options):
    return model.complete(model.encode([{"role": "user", "content": text}]), settings, seed, print, **options)


def test_the_top_expert_is_the_one_with_the_largest_weight():
    assert TRACE.top_experts(0) == [0, 1, 1]
    assert TRACE.top_experts(1) == [2, 3, 3]


def test_the_load_counts_all_assignments():
    assert TRACE.load(0) == [0.5, 0.5, 0.0, 0.0]
    torch.testing.assert_close(torch.tensor(TRACE.load(1)), torch.tensor([1, 0, 2, 3]) / 6)


def test_routing_is_recorded_for_each_token_that_was_fed_back(talker):
    completion = ask(talker, settings=SAMPLED._replace(do_sample=False), record_routing=True)
    trace = completion.routing
    # All tokens of the answer were fed back, the last to get the token that ended it.
    assert completion.stopped
    assert trace.experts_LTK.shape == (2, completion.num_tokens, 2)
    assert (trace.layers, trace.num_experts) == ((0, 2), 5)
    assert "".join(piece.text for piece in trace.pieces) == completion.text


def test_recorded_experts_are_those_of_the_router_logits(talker):
    settings = SAMPLED._replace(do_sample=False)
    prompt = talker.encode([{"role": "user", "content": "hi"}])
    completion = talker.complete(prompt, settings, 0, print, record_routing=True)
    answer = talker.tokenizer(" " + completion.text)["input_ids"]
    with torch.no_grad():
        out = talker.model(input_ids=torch.tensor([prompt + answer]), output_router_logits=True)
    for row, logits_TE in enumerate(out.router_logits):
        assert completion.routing.top_experts(row) == logits_TE[len(prompt) :].argmax(-1).tolist()


def test_a_dense_model_records_no_routing_and_hooks_are_taken_off(babbler, talker):
    assert ask(babbler, record_routing=True).routing is None
    before = [len(router._forward_hooks) for router in talker.routers.values()]
    ask(talker, record_routing=True)
    assert [len(router._forward_hooks) for router in talker.routers.values()] == before


def test_routing_of_another_family_is_recorded_too(tokenizer):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        max_position_embeddings=64,
        eos_token_id=0,
    )
    model = CausalTextModel(MixtralForCausalLM(config).eval(), tokenizer, "mixtral")
    trace = ask(model, record_routing=True).routing
    assert (trace.layers, trace.num_experts, trace.experts_LTK.shape[1]) == ((0, 1), 3, 11)


def test_routers_are_found_in_the_order_of_their_layers(talker, babbler):
    assert sparse_layers(find_routers(talker.model)) == (0, 2)
    assert find_routers(babbler.model) == {}


def test_without_a_pass_there_is_no_trace(talker):
    recorder = RoutingRecorder(talker.routers)
    with recorder.recording():
        pass
    assert recorder.trace(1, []) is None


@pytest.mark.parametrize("kind", list(NATIVE_MOES))
def test_the_routing_of_transformers_own_classes_is_recorded(kind: str) -> None:
    model = native_moe(kind).eval()
    routers = find_routers(model)
    recorder = RoutingRecorder(routers, top_k=2)
    with recorder.recording(), torch.no_grad():
        model(torch.arange(3, 9)[None])
    trace = recorder.trace(2, [Piece("abcd", 4)])
    assert trace is not None
    assert trace.experts_LTK.shape == trace.weights_LTK.shape == (len(routers), 4, 2)
    assert trace.num_experts == 4
    assert not trace.experts_LTK.is_floating_point()
    assert all(sum(trace.load(layer)) == pytest.approx(1) for layer in range(len(routers)))
