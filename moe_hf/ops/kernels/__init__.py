"""Triton twins of the functions in moe_hf.ops: importable only where triton is installed."""
