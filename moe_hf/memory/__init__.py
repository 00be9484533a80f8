"""Wing: what outlives a context. Facts of a conversation, and vectors that are kept, found again and made fewer."""

from moe_hf.memory.compressor import StreamingCompressor
from moe_hf.memory.hierarchical import HierarchicalMemory
from moe_hf.memory.reservoir import ReservoirBuffer
from moe_hf.memory.vector_store import VectorStore

__all__ = ["HierarchicalMemory", "ReservoirBuffer", "StreamingCompressor", "VectorStore"]
