"""Words on a command line become one call; the only room that prints."""

import os
import sys

# While one thread of a parallel region waits for another, libgomp lets it spin, by default so long that two busy
# programs on the same cores take each other's time. A short spin costs an idle machine nothing. The variable is read
# once, when torch loads libgomp; whoever chose a policy keeps it.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
