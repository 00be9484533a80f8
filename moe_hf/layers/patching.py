"""Turns bytes into patch vectors by joining the embeddings of their bytes.

Shapes: B batch, S bytes, P bytes per patch, K patches, D width of a patch vector, E = D / P width of a byte.
"""

import torch
from torch import nn
from transformers import initialization as init

from moe_hf.base.errors import ConfigError
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.ops.patching import num_patches, shift_right, to_patches


class MegaBytePatching(nn.Module, DrawsOwnWeights):
    """MegaByte's patch embedder (Yu et al. 2023, 2305.07185, section 2.2.1), without its positions.

    Positions of bytes, joined in the same way, are positions of patches: a decoder that adds those needs no others.

    Args:
        patch_size: P, bytes per patch.
        dim: D, width of a patch vector; a multiple of `patch_size`.
        vocab_size: ids that may occur: the 256 bytes, and whatever special ids a tokenizer adds.

    Attributes:
        embedding: the vectors of the bytes, (`vocab_size`, E).
        start: the vector that stands before the first patch, (D,).

    Raises:
        ConfigError: a number is not positive, or `dim` cannot be divided among the bytes of a patch.

    >>> MegaBytePatching(patch_size=4, dim=64)(torch.tensor([list(b"seven.."), list(b"letters")])).shape
    torch.Size([2, 2, 64])
    """

    def __init__(self, patch_size: int, dim: int, vocab_size: int = 256) -> None:
        super().__init__()
        # Called for its check of the size.
        num_patches(0, patch_size)
        if dim < 1 or dim % patch_size:
            raise ConfigError(
                f"dim={dim} is not allowed; it must be a positive multiple of patch_size={patch_size}, since each byte "
                "of a patch gets an equal part of its vector"
            )
        if vocab_size < 1:
            raise ConfigError(f"vocab_size must be an integer >= 1, got {vocab_size}; 256 holds all bytes")
        self.patch_size = patch_size
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim // patch_size)
        self.start = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.start, std=0.02)

    def draw_weights(self, std: float, residual_std: float) -> None:
        """The patch of start is as loud as the bytes."""
        init.normal_(self.start, mean=0.0, std=std)

    def forward(
        self,
        byte_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        shift: bool = False,
        begins: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """A vector per patch, (B, K, D), with K = ceil(S / P).

        Each sees all bytes of its patch: ask for a shift before a model that must not look ahead reads them.

        Args:
            byte_ids: (B, S) integers in [0, `vocab_size`), any S; absent bytes of the last patch count as zero vectors.
            mask: (B, S), nonzero at real bytes; the others count as zero vectors too. None means that all are real.
            shift: whether to move them by one patch, as `shifted` does.
            begins: as in `shifted`.

        Raises:
            ConfigError: the ids are no integers, of another shape, or out of range.
        """
        self._check(byte_ids)
        x_BSE = self.embedding(byte_ids.long())
        if mask is not None:
            x_BSE = x_BSE * (mask != 0)[..., None].to(x_BSE.dtype)
        patches = to_patches(x_BSE, self.patch_size).flatten(2)
        return self.shifted(patches, begins) if shift else patches

    def shifted(self, patches: torch.Tensor, begins: torch.Tensor | None = None) -> torch.Tensor:
        """The patch vectors (B, K, D) one patch later, `start` in front: place k knows the patches before k alone.

        Args:
            patches: (B, K, D).
            begins: (B, K), True where a document begins: `start` stands there too. None means only in front.
        """
        later_BKD = shift_right(patches, self.start)
        return later_BKD if begins is None else torch.where(begins[..., None], self.start.to(later_BKD), later_BKD)

    def _check(self, byte_ids: torch.Tensor) -> None:
        whole = not (byte_ids.is_floating_point() or byte_ids.is_complex() or byte_ids.dtype == torch.bool)
        if byte_ids.ndim != 2 or not whole:
            raise ConfigError(
                f"byte_ids of shape {tuple(byte_ids.shape)} and {byte_ids.dtype} are not allowed; they must be (batch, "
                "bytes) integers, such as torch.tensor([list(text.encode())])"
            )
        # Only where looking at values is free; elsewhere the embedding itself complains.
        looks = byte_ids.device.type == "cpu" and byte_ids.numel() > 0 and not torch.compiler.is_compiling()
        if looks and not 0 <= int(byte_ids.min()) <= int(byte_ids.max()) < self.embedding.num_embeddings:
            raise ConfigError(
                f"byte_ids in [{int(byte_ids.min())}, {int(byte_ids.max())}] are not allowed; they must be in [0, "
                f"{self.embedding.num_embeddings}); give MegaBytePatching a larger vocab_size or encode text as bytes"
            )
