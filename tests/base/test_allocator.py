"""Tuning the C library's allocator: freed memory stays, and only glibc is touched."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import moe_hf.base.allocator
from moe_hf.base.allocator import tune_allocator
from moe_hf.base.errors import ConfigError

PACKAGE = Path(moe_hf.base.allocator.__file__).parent.parent

# Blocks above 32 MiB are touched and freed; a page that comes from the system is a minor fault each time.
# The package is stood up bare: importing all of it would take longer than the test.
PROGRAM = """
import resource, sys, types
sys.modules["moe_hf"] = types.ModuleType("moe_hf")
sys.modules["moe_hf"].__path__ = [sys.argv[1]]
from moe_hf.base.allocator import tune_allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(b"x") * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
tune_allocator()
faults()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's options are glibc's")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(PACKAGE)], capture_output=True, text=True, check=True)
    plain, tuned = map(int, done.stdout.split())
    assert plain >= 4 * 2**26 // 2**16
    assert tuned < plain / 10


def test_another_c_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    with pytest.raises(ConfigError, match="knows glibc only, got 'musl'"):
        tune_allocator()
