"""Trains a model: `python train.py --help` lists every flag."""

import sys

from moe_hf.__main__ import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:], prog="train.py"))
