"""The busiest experts are those that take most tokens of what is read."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.busiest_experts import busiest_experts
from moe_hf.inference.text_model import CausalTextModel
from moe_hf.models.found_routers import find_routers
from tests.inference.conftest import small_model

DOCUMENTS = [list(range(3, 60)), [], list(range(40, 90)) * 4]


def test_they_take_most_of_the_tokens(talker) -> None:
    counts = torch.zeros(2, 5)
    length = talker.context_limit
    for document in DOCUMENTS:
        for start in range(0, len(document), length):
            with torch.no_grad():
                out = talker.model(torch.tensor([document[start : start + length]]), output_router_logits=True)
            for row, logits_TE in enumerate(out.router_logits):
                counts[row] += torch.bincount(logits_TE.topk(2).indices.flatten(), minlength=5)
    kept = busiest_experts(talker, DOCUMENTS, 2)
    assert list(kept) == [0, 2]
    for row, experts in enumerate(kept.values()):
        assert counts[row, list(experts)].tolist() == counts[row].sort(descending=True).values[:2].tolist()


def test_tokens_are_counted_where_experts_take_few_of_some_documents(tokenizer) -> None:
    model = small_model(tokenizer, router_type="expert_threshold", mlp_layer_types=["sparse", "dense", "dense"])
    (router,) = find_routers(model).values()
    scores: list[torch.Tensor] = []
    handle = router.register_forward_hook(lambda module, args, output: scores.append(output[0].sigmoid()))
    documents = [list(range(3, 60)), list(range(60, 117))]
    with torch.no_grad():
        for document in documents:
            model(torch.tensor([document]))
        handle.remove()
        # The first document gives two tokens to one expert alone, the second one three to another: 2 of 2, 3 of 4.
        first, second = scores
        threshold_E = torch.cat(scores).amax(dim=0) + 1e-3
        one = int((first.amax(dim=0) - second.amax(dim=0)).argmax())
        other = int((second.amax(dim=0) - first.amax(dim=0)).argmax())
        threshold_E[one], threshold_E[other] = (
            scores_TE[:, expert].topk(number).values[-1] - 1e-6
            for scores_TE, expert, number in ((first, one, 2), (second, other, 3))
        )
        router.score_threshold.copy_(threshold_E)
    counts = sum((torch.cat([x[:, [one, other]] for x in scores]) > threshold_E[[one, other]]).long()).tolist()
    talker = CausalTextModel(model, tokenizer, "few")
    assert busiest_experts(talker, documents, 1)[0] == ((one, other)[counts[1] > counts[0]],)


def test_what_has_none_is_refused(talker, babbler) -> None:
    with pytest.raises(ConfigError, match="babbler has no layer with experts"):
        busiest_experts(babbler, DOCUMENTS, 1)
    with pytest.raises(ConfigError, match="the documents have no token"):
        busiest_experts(talker, [[]], 1)
    with pytest.raises(ConfigError, match=r"6 busiest experts are not to be had: .* has 5 per layer"):
        busiest_experts(talker, DOCUMENTS, 6)
    with pytest.raises(ConfigError, match="0 busiest experts are not to be had"):
        busiest_experts(talker, DOCUMENTS, 0)
