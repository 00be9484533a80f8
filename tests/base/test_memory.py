"""The peak of memory is the system's own number in bytes."""

import re
from pathlib import Path

import pytest
import torch

from moe_hf.base.memory import peak_memory

STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux has the number to compare with")
def test_the_peak_of_a_process_is_the_system_s_in_bytes() -> None:
    match = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())
    assert match is not None
    peak = peak_memory(torch.device("cpu"))
    assert peak is not None
    # It may have grown between the two looks, and is counted per thread in batches of pages.
    assert peak == pytest.approx(1024 * int(match[1]), rel=0.02)


@pytest.mark.gpu
def test_on_a_gpu_the_tensors_are_counted() -> None:
    device = torch.device("cuda")
    torch.zeros(2**22, device=device)
    assert (peak_memory(device) or 0) >= 2**24
