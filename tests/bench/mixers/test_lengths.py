"""Time and memory at growing lengths."""

from moe_hf.bench.harness.arms import FORWARD
from moe_hf.bench.mixers.lengths import lengths_of


def test_lengths_go_from_512_to_32768() -> None:
    assert lengths_of(FORWARD, quick=False) == [512, 1024, 2048, 4096, 8192, 16384, 32768]
