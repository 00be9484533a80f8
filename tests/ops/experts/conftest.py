"""Ways to cut rows into chunks and groups, for the tests of sorted experts."""

import pytest

from moe_hf.ops.experts import expert_parts

# The bytes that a chunk and a group may have; a row has 10 float32 numbers.
CHUNKING = {
    "whole": (2**20, 2**20),
    "one by one": (2**20, 0),
    "groups of nine rows": (2**20, 9 * 40),
    "chunks of three rows": (3 * 40, 0),
    "groups of chunks": (3 * 40, 9 * 40),
}


@pytest.fixture(params=CHUNKING)
def chunking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in zip(("CHUNK_BYTES", "GROUP_BYTES"), CHUNKING[request.param], strict=True):
        monkeypatch.setattr(expert_parts, name, limit)
