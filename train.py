"""Trains a model: `python train.py --help` lists every flag."""

import sys

from moe_hf.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
