import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import triton


def version(package):
    return tuple(map(int, package.__version__.split(".")[:2]))


@pytest.mark.skipif(
    version(triton) < (3, 7) and version(numpy) >= (2, 4),
    reason="the interpreter of Triton before 3.7 cannot read the scalars of NumPy 2.4",
)
def test_the_kernels_equal_their_twins_in_tritons_interpreter():
    rooms = sorted(map(str, Path(__file__).parent.glob("*/triton")))
    # Without any, pytest would run all tests there are.
    assert rooms
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *rooms]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
