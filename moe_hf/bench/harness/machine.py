"""Says what a measurement was taken on: processor, memory, versions, threads and how busy the machine was."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from moe_hf.version import __version__

_CPU_INFORMATION = Path("/proc/cpuinfo")
# What decides which GEMM kernels a CPU can run.
_VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def describe_machine() -> dict[str, Any]:
    """Processor, its vector units, cores, memory, GPU, versions, threads, and the load at this moment.

    Returns:
        What a JSON file can hold. `load` is the number of running processes per core, averaged over a minute and
        over 5 minutes: above about 0.1 before a measurement begins, somebody else is using the machine.
    """
    load = psutil.getloadavg()
    cores = psutil.cpu_count() or 1
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "vector_units": _vector_units(),
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "load": [round(load[0] / cores, 2), round(load[1] / cores, 2)],
        "system": platform.system(),
        "gpu": _gpu(),
        "moe_hf": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": _version_of("triton"),
        "scattermoe": _version_of("scattermoe"),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def _processor() -> str:
    names = _cpu_information("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _vector_units() -> list[str]:
    # On ARM the line is called Features.
    flags = set(" ".join(_cpu_information("flags")[:1] + _cpu_information("Features")[:1]).split())
    return [flag for flag in _VECTOR_FLAGS if flag in flags]


def _cpu_information(field: str) -> list[str]:
    lines = _CPU_INFORMATION.read_text().splitlines() if _CPU_INFORMATION.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field]


def _gpu() -> str | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
