"""The busiest experts are those that take most tokens of what is read."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.inference.busiest_experts import busiest_experts

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


def test_what_has_none_is_refused(talker, babbler) -> None:
    with pytest.raises(ConfigError, match="babbler has no layer with experts"):
        busiest_experts(babbler, DOCUMENTS, 1)
    with pytest.raises(ConfigError, match="the documents have no token"):
        busiest_experts(talker, [[]], 1)
    with pytest.raises(ConfigError, match=r"6 busiest experts are not to be had: .* has 5 per layer"):
        busiest_experts(talker, DOCUMENTS, 6)
    with pytest.raises(ConfigError, match="0 busiest experts are not to be had"):
        busiest_experts(talker, DOCUMENTS, 0)
