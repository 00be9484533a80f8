"""Text of two domains and sizes small enough for tests."""

import json

from moe_hf.bench.studies.worth.learning import Sizes

SIZES = Sizes(vocab_size=300, context_length=32, batch_size=2)


def write_rows(file, count, start=0):
    """A file of `count` documents, code and prose in turn; returns it."""
    prose = "the lamp number {n} stands beside the old door and waits for the evening "
    code = "def f{n}(x):\n    return x + {n}\n"
    rows = []
    for n in range(start, start + count):
        domain = ("prose", "code")[n % 2]
        rows.append(json.dumps({"text": (prose, code)[n % 2].format(n=n) * 4, "domain": domain}))
    file.write_text("\n".join(rows) + "\n\n")
    return file
