"""Where the Triton kernels can run: on a GPU, in Triton's interpreter, or not at all in this process.

The interpreter is chosen when triton is first imported, for the whole process, and changes triton for everybody in it
(torch.compile imports it as well). So the interpreted tests get a process of their own: test_in_interpreter.py starts
it, once. To work on one of them: TRITON_INTERPRET=1 pytest tests/ops/experts/triton
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moe_hf.base.optional import is_available

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

_KERNELS = ("activations", "experts", "gradients", "grouped_gemm", "routing", "sorting")
_NEED_A_RUN = [*(f"*/triton/test_{name}.py" for name in _KERNELS), "test_on_gpu.py"]
_NEED_TRITON = ["test_in_interpreter.py", "test_compilation.py"]
if not is_available("triton"):
    collect_ignore_glob = ["*/triton/*.py", "test_on_gpu.py", *_NEED_TRITON]
elif INTERPRETING:
    collect_ignore_glob = [*_NEED_TRITON, "test_on_gpu.py"]
elif not torch.cuda.is_available():
    collect_ignore_glob = _NEED_A_RUN


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for `device` runs on the GPU unless the interpreter is on."""
    here = Path(__file__).parent
    for item in items:
        if not INTERPRETING and here in item.path.parents and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
            # Some of what the references use has no deterministic form there, and poisoning asks for one.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning"))


@pytest.fixture
def device() -> torch.device:
    """Where the tensors have to lie for the kernels."""
    return torch.device("cpu" if INTERPRETING else "cuda")


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever reads what nobody wrote reads NaN."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
