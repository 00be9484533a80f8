"""The most memory that was in use at once, on whichever device and system this runs."""

import sys

import torch

if sys.platform != "win32":
    import resource


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use at once so far: on a CUDA device of its tensors, else of the process.

    None on Windows without a CUDA device, since the system does not tell it this way.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else 1024 * peak
