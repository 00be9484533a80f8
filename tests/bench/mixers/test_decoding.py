"""The cases in which a layer brings forth one token after a context."""

from moe_hf.bench.harness.arms import DECODE, Options
from moe_hf.bench.harness.comparison import compare
from moe_hf.bench.mixers.decoding import HOST, OWN, decoding_cases


def test_transformers_layer_decodes_the_same_token_from_its_own_cache():
    case = next(case for case in decoding_cases(quick=True) if case.name == "Mamba-2")
    compared = compare(case.build(Options()).arms)
    assert [arm.name for arm in compared.arms] == [OWN, HOST]
    assert compared.errors[HOST] < 1e-3


def test_every_case_decodes_and_the_quick_suite_leaves_hyena_out():
    whole, quick = decoding_cases(quick=False), decoding_cases(quick=True)
    assert {case.mode for case in whole} == {DECODE}
    assert {case.name for case in whole} - {case.name for case in quick} == {"Hyena", "long convolution"}
    assert all("after" in case.place for case in whole)
