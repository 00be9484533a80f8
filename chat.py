"""Talk with a trained model: `python chat.py`, or `python chat.py --help`."""

import sys

from moe_hf.cli.chat import main

if __name__ == "__main__":
    sys.exit(main())
