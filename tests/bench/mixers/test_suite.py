"""The suite of the mixers: what it measures, and what is asked of it."""

import pytest

from moe_hf.bench.mixers.suite import suite_cases


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_has_a_label_of_its_own(quick: bool) -> None:
    labels = [case.place for case in suite_cases(quick)]
    assert len(set(labels)) == len(labels)


def test_the_suite_claims_every_number_of_the_table() -> None:
    claims = {goal.quantity: goal.must for case in suite_cases(quick=False) for goal in case.goals}
    for words, must in {
        "Mamba-1 forward vs transformers": 2.2,
        "Mamba-1 forward+backward vs transformers, 512 tokens": 30,
        "Mamba-1 forward+backward vs transformers, 2,048 tokens": 300,
        "Mamba-1 forward+backward vs a scan of unbound tokens": 2.5,
        "Mamba-1 memory / transformers', 8,192 tokens": 0.12,
        "Mamba-2 forward vs transformers": 1.8,
        "Mamba-2 forward vs transformers, 8,192 tokens": 2.8,
        "Mamba-2 forward+backward vs transformers": 1.7,
        "Mamba-2 memory / transformers', 8,192 tokens": 0.12,
        "RWKV-4 forward vs transformers, width 768": 1.4,
        "RWKV-4 forward vs transformers, width 256": 3,
        "RWKV-4 forward+backward vs transformers": 3,
        "RWKV-7 forward vs its recurrence": 1.8,
        "RWKV-7 forward+backward vs its recurrence": 4,
        "RetNet forward vs parallel and recurrent": 2,
        "RetNet forward+backward vs parallel and recurrent": 2,
        "Mamba-1 forward vs sdpa, 8,192 tokens": 1.1,
        "Hyena forward vs sdpa, 8,192 tokens": 2.4,
        "growth of forward, 2,048 to 8,192 tokens": 4.8,
        "growth of forward+backward, 2,048 to 8,192 tokens": 4.8,
        "decoding a token, after 8,192 / after 512 (RetNet, Mamba, RWKV)": 1.15,
        "Mamba-1 decoding vs transformers": 1.3,
        "Mamba-2 decoding vs transformers": 1.6,
        "Hyena's long convolution, a token vs a dot product over the cache, 8,192 tokens": 3,
        "Hyena decoding vs computing all tokens again, 8,192 tokens": 100,
        "top-k vs sdpa, decoding against 32,768 keys": 1.8,
        "top-k blocks vs sdpa, prefill of 8,192 tokens": 2,
    }.items():
        assert claims[words] == must
