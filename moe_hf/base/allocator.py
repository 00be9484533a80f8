"""Lets the C library keep the memory that big tensors give back, which spares the CPU faulting it in again."""

import ctypes
import platform

from moe_hf.base.errors import ConfigError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_INT_MAX = 2**31 - 1


def tune_allocator() -> None:
    """Keep freed memory in the process instead of handing it back to the system, for the rest of its life.

    glibc maps every block above 32 MiB anew, and the system fills its pages with zeros one by one, at a tenth of the
    speed of memory that has been touched: a training step on a CPU pays that for each big gradient. The price is that
    the process never shrinks. Opt-in, best called before anything big is allocated; no effect on GPU memory.

    Raises:
        ConfigError: the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        raise ConfigError(f"tune_allocator() knows glibc only, got {platform.libc_ver()[0] or platform.system()!r}")
    libc = ctypes.CDLL("libc.so.6")
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _INT_MAX)):
        if libc.mallopt(option, value) != 1:
            raise ConfigError(f"this glibc refused mallopt({option}, {value}); leave its allocator as it is")
