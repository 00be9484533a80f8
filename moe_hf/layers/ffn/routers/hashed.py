"""Hash routing: a token's experts follow from its vocabulary id alone.

Shapes: T tokens, E experts, K experts per token, V vocabulary ids.
"""

import math
from typing import ClassVar, Self

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers.base import Router
from moe_hf.ops.routing.hashing import MOST_HASHED_EXPERTS, hash_experts, ids_of_vectors

# Far enough below that its probability is exactly 0, near enough that no product with it is NaN.
_NEVER = -1e4


class HashRouter(Router):
    """No parameters and nothing to balance: each id has its experts, always (Roller et al. 2021, Hash Layers).

    Without ids, and outside a model, the bits of each vector are hashed instead.

    Args:
        num_experts: E.
        k: experts per token, 1 or 2; each weighs 1 / k.
        seed: another seed gives another assignment.
        table_size: V, to hold a table of each id's experts, at first the hash's own, which
            `moe_hf.ops.routing.hashing.balanced_hash_table` can replace; None computes the hash on the way.

    Raises:
        ConfigError: `k` is neither 1 nor 2, or more than E.

    >>> HashRouter(num_experts=16)(torch.zeros(4, 512, 256), torch.arange(4 * 512)).expert_TK.shape
    torch.Size([2048, 2])
    """

    balanced_by_loss: ClassVar[bool] = False

    def __init__(self, num_experts: int, k: int = 2, seed: int = 0, table_size: int | None = None) -> None:
        if not 1 <= k <= min(MOST_HASHED_EXPERTS, num_experts):
            raise ConfigError(
                f"a hash router with num_experts={num_experts} cannot send a token to k={k} experts; k must be 1 or "
                f"{MOST_HASHED_EXPERTS}, and at most num_experts"
            )
        super().__init__(num_experts, k)
        self.seed = seed
        # Inside a model, checksums of hidden states would change with rounding, so ids are required there.
        self.needs_ids = table_size is not None
        self.expert_of_id: torch.Tensor | None
        self.register_buffer("expert_of_id", None if table_size is None else self.hash_table(table_size))

    @classmethod
    def from_config(cls, config: MoEDecoderConfig) -> Self:
        """The router of one sparse layer of a model."""
        k = min(config.num_experts_per_tok, MOST_HASHED_EXPERTS)
        return cls(config.num_experts, k, config.router_hash_seed, config.vocab_size)

    def hash_table(self, table_size: int) -> torch.Tensor:
        """The hash's own experts of the ids from 0 to `table_size` - 1, (V, K)."""
        return hash_experts(torch.arange(table_size), self.num_experts, self.num_experts_per_tok, self.seed)

    def logits(self, x_TD: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        """Logits whose softmax is the routing itself: 1 / k for the id's experts and 0 for the others.

        Raises:
            ConfigError: the router of a model got no `token_ids`.
        """
        if token_ids is None:
            if self.needs_ids:
                raise ConfigError(
                    f"hash routing needs token ids, got only embeddings {tuple(x_TD.shape)}; call the model with "
                    "input_ids"
                )
            token_ids = ids_of_vectors(x_TD)
        if self.expert_of_id is None:
            expert_TK = hash_experts(token_ids, self.num_experts, self.num_experts_per_tok, self.seed)
        else:
            expert_TK = self.expert_of_id[token_ids]
        logits_TE = torch.full((x_TD.shape[0], self.num_experts), _NEVER, device=x_TD.device)
        return logits_TE.scatter(1, expert_TK.to(x_TD.device), -math.log(self.num_experts_per_tok))

    def choose(self, logits_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """The experts that `logits` marked."""
        return logits_TE.topk(self.num_experts_per_tok, dim=-1).indices

    def weigh(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """1 / k for each."""
        return torch.full_like(expert_TK, 1 / self.num_experts_per_tok, dtype=torch.float32)
