"""Talk with a trained model: `python chat.py`, or `python chat.py --help`."""

import sys

from moe_hf.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("chat", sys.argv[1:], prog="chat.py"))
