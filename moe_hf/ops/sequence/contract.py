"""What all ops along a sequence share: one copy of the contract of decision 10.

Shapes: B rows, S positions, D width.
"""

from typing import NamedTuple, TypedDict, Unpack

import torch


class Layout(TypedDict, total=False):
    """Keywords that say which positions of a call are tokens, and of which documents.

    Attributes:
        mask_BS: nonzero at real tokens; None, the default, means that all are. Padding may stand anywhere: it leaves
            the state as it is, whatever stands there, as if it were absent. The output at padding means nothing.
        starts_BS: bool, True at a token that begins a document, before which the state is emptied; None, the default,
            means that none begins inside. At padding none begins.
    """

    mask_BS: torch.Tensor | None
    starts_BS: torch.Tensor | None


class Carried(Layout, total=False):
    """The keywords of an op that carries a state from call to call.

    Attributes:
        initial_state: the state after the tokens before; None, the default, is that before any token.
        output_final_state: whether the state after the last real token is wanted, as it is by default. If not, None
            takes its place.
    """

    initial_state: torch.Tensor | None
    output_final_state: bool


class Edges(NamedTuple):
    """Which tokens are real, and where documents begin: (B, S) each, or None; as in `Layout`."""

    mask_BS: torch.Tensor | None = None
    starts_BS: torch.Tensor | None = None

    def between(self, start: int, stop: int) -> "Edges":
        """The tokens from `start` to `stop`, as views."""
        return Edges(*(None if part is None else part[:, start:stop] for part in self))


def edges_of(*, mask_BS: torch.Tensor | None = None, starts_BS: torch.Tensor | None = None) -> Edges:
    """The edges that an op's `Layout` keywords describe."""
    if starts_BS is not None and mask_BS is not None:
        # Padding neither writes nor decays, and begins no document.
        starts_BS = starts_BS & (mask_BS != 0)
    return Edges(mask_BS, starts_BS)


class Call(NamedTuple):
    """The keywords of one call, with what they say taken together."""

    initial_state: torch.Tensor | None
    edges: Edges
    output_final_state: bool

    def result(self, out: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the op returns: the output, and the state if it is wanted."""
        return out, state if self.output_final_state else None


def call_of(
    *, initial_state: torch.Tensor | None = None, output_final_state: bool = True, **layout: Unpack[Layout]
) -> Call:
    """The call that an op's `Carried` keywords describe."""
    return Call(initial_state, edges_of(**layout), output_final_state)


def zero_padding(mask: torch.Tensor | None, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, each (*mask.shape, ...), with zeros where the mask is 0; None masks nothing.

    Not a product, since zero times what is not finite would not be zero.
    """
    if mask is None:
        return tensors
    absent = mask == 0
    return tuple(x.masked_fill(absent.view(*absent.shape, *[1] * (x.ndim - absent.ndim)), 0) for x in tensors)


class Segment(NamedTuple):
    """Tokens from `start` to `stop` that are worked on together, in whole chunks of `chunk` tokens."""

    start: int
    stop: int
    chunk: int


class Segments(NamedTuple):
    """How a sequence is cut: tokens of one chunk, and of one whole segment, a multiple of it.

    The tokens of a chunk are formed into products at once; between segments the state is kept for the backward pass.
    """

    chunk: int
    segment: int

    def of(self, length: int) -> list[Segment]:
        """The segments one after the other; what no full chunk is left for is a chunk by itself.

        >>> [tuple(segment) for segment in Segments(32, 256).of(548)]
        [(0, 256, 32), (256, 512, 32), (512, 544, 32), (544, 548, 4)]
        """
        whole = length - length % self.chunk
        segments = [
            Segment(start, min(start + self.segment, whole), self.chunk) for start in range(0, whole, self.segment)
        ]
        return segments + ([Segment(whole, length, length - whole)] if whole < length else [])

    def limit(self, length: int) -> int:
        """No fewer than there are segments, by arithmetic alone, for lengths that the compiler does not know.

        At least 2: torch.export traces for any length only that, since a size of 1 would be another program.
        """
        # One more than whole segments, for the last tokens where they fill no chunk.
        return -(-length // self.segment) + 1


class Compaction(NamedTuple):
    """Where each token of padded rows stands once the real ones come first, in their order.

    So what looks at neighbours never sees padding. `order_BS` lists the positions, real ones first; `place_BS` is its
    inverse; `count_B` counts the real tokens.
    """

    order_BS: torch.Tensor
    place_BS: torch.Tensor
    count_B: torch.Tensor

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """The entries of `x`, (B, S) or (B, S, D), real ones first; what follows them in a row is its padding."""
        return _take(x, self.order_BS)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """What `pack` gave, back in its place."""
        return _take(x, self.place_BS)


def compaction(mask_BS: torch.Tensor) -> Compaction:
    """How to move the tokens where `mask_BS` is nonzero to the front of their rows.

    >>> compaction(torch.tensor([[0, 1, 0, 1]])).order_BS.tolist()
    [[1, 3, 0, 2]]
    """
    real_BS = mask_BS != 0
    # Padding is moved and not dropped, so that no shape depends on the mask and nothing waits for the device. The sort
    # is stable, or the real tokens would lose their order.
    order_BS = torch.argsort((~real_BS).to(torch.uint8), dim=1, stable=True)
    return Compaction(order_BS, torch.argsort(order_BS, dim=1), real_BS.sum(dim=1))


def without_padding(x_BSD: torch.Tensor, edges: Edges) -> tuple[torch.Tensor, torch.Tensor | None, Compaction | None]:
    """The tokens and the starts with the real tokens first, and how that was done; None where all are real."""
    if edges.mask_BS is None:
        return x_BSD, edges.starts_BS, None
    moved = compaction(edges.mask_BS)
    return moved.pack(x_BSD), None if edges.starts_BS is None else moved.pack(edges.starts_BS), moved


def _take(x: torch.Tensor, index_BS: torch.Tensor) -> torch.Tensor:
    if x.ndim == 2:
        return x.gather(1, index_BS)
    return x.gather(1, index_BS[..., None].expand(-1, -1, x.shape[-1]))
