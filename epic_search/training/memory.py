"""The most memory that this process has taken: a GPU's where it computes on one, else the machine's."""

import re
import sys
from pathlib import Path

import torch

MB = 1e6


def peak_memory_mb(device: torch.device) -> float | None:
    """Megabytes (10**6 bytes) since the process began; None where the system does not tell.

    On a GPU what tensors took (`torch.cuda.max_memory_allocated`), else the peak of the resident set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    status = Path("/proc/self/status")
    # Not the resource module alone: there a child process begins with the peak of its parent.
    if status.is_file() and (peak := re.search(rb"VmHWM:\s+(\d+) kB", status.read_bytes())):
        return int(peak[1]) * 1024 / MB
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_size * (1 if sys.platform == "darwin" else 1024) / MB
