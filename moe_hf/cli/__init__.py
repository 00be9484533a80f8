"""Words on a command line become one call; the only room that prints."""

import os
import sys
from contextlib import suppress


def spin_count(loadavg: str, cores: int) -> int:
    """How long a waiting thread spins: shortly on an idle machine, hardly at all where others want the cores.

    Args:
        loadavg: what /proc/loadavg holds; its fourth field begins with the tasks that run now, this one among them.
        cores: that this process may use.

    >>> spin_count("0.10 0.20 0.30 1/400 123", cores=2), spin_count("2.10 2.00 1.90 3/400 123", cores=2)
    (10000, 1000)
    """
    others = int(loadavg.split()[3].partition("/")[0]) - 1
    return 1_000 if others >= max(cores // 2, 1) else 10_000


# While one thread of a parallel region waits for another, libgomp lets it spin, by default so long that two busy
# programs on the same cores take each other's time. A short spin costs an idle machine nothing, one of 1,000 a fifth.
# The variable is read once, when torch loads libgomp; whoever chose a policy keeps it.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
    os.environ["GOMP_SPINCOUNT"] = "10000"
    # Linux alone has the file.
    with suppress(OSError, ValueError, IndexError), open("/proc/loadavg", encoding="ascii") as file:
        os.environ["GOMP_SPINCOUNT"] = str(spin_count(file.read(), len(os.sched_getaffinity(0))))
