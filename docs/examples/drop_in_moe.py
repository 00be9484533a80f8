# ruff: noqa: T201
"""Puts `moe_hf.MoE` into a small GPT that knows nothing of this package, and trains it beside its dense twin.

Run `python docs/examples/drop_in_moe.py`. Dense and MoE compute the same FLOPs per token: 2 experts of half the width.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from moe_hf import MoE
from moe_hf.text.corpus import EmbeddedCorpus
from moe_hf.text.tokenizers import train_tokenizer

# ---- a stranger's model: a plain pre-norm GPT


@dataclass
class GPTConfig:
    """Sizes of the model, by nanoGPT's names."""

    vocab_size: int = 768
    block_size: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 64
    dropout: float = 0.0
    bias: bool = False
    # The only addition: 0 keeps the model dense.
    num_experts: int = 0


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The dense feed-forward network."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the feed-forward network, each on its own norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.mlp = MLP(config)
        # The one line that makes it a mixture of experts.
        if config.num_experts:
            self.mlp = MoE(config, num_experts=config.num_experts, top_k=2, d_expert=2 * config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, D)."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head that shares the embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, S, V) of the next token."""
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


# ---- training it


def task_loss(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats."""
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train_step(model: GPT, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """One update; returns the CPU seconds that it took."""
    begun = time.process_time()
    loss = task_loss(model, ids)
    for block in model.blocks:
        if isinstance(block.mlp, MoE):
            loss = loss + block.mlp.get_load_balance_loss()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - begun


def corpus_blocks(num_blocks: int, config: GPTConfig) -> torch.Tensor:
    """The package's own conversations as (N, S) token ids."""
    # Twenty tokens is less than any conversation's average.
    num_conversations = num_blocks * config.block_size // 20 + 500
    conversations = list(EmbeddedCorpus().train_conversations(num_conversations, seed=0))
    texts = ["\n".join(message["content"] for message in talk["messages"]) + "\n\n" for talk in conversations]
    tokenizer = train_tokenizer(texts[:2000], kind="word", vocab_size=config.vocab_size)
    ids = torch.tensor([id for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for id in row])
    blocks = ids[: num_blocks * config.block_size].view(num_blocks, config.block_size)
    return blocks[torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train both models on the same batches, in turns, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--num_experts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the weights; the text is always the same")
    given = parser.parse_args(arguments)

    blocks = corpus_blocks((given.steps + 8) * given.batch_size, GPTConfig())
    batches = blocks.split(given.batch_size)
    held_out = torch.cat(batches[given.steps :])
    models, optimizers, seconds = {}, {}, {}
    for name, num_experts in (("dense", 0), ("MoE", given.num_experts)):
        torch.manual_seed(given.seed)
        models[name] = GPT(GPTConfig(num_experts=num_experts))
        optimizers[name] = torch.optim.AdamW(models[name].parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
        seconds[name] = []
    for batch in batches[: given.steps]:
        for name, model in models.items():
            seconds[name].append(train_step(model, optimizers[name], batch))

    print(f"after {given.steps} steps of {blocks[0].numel() * given.batch_size:,} tokens:")
    for name, model in models.items():
        with torch.no_grad():
            loss = task_loss(model.eval(), held_out).item()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        milliseconds = 1000 * torch.tensor(seconds[name]).median().item()
        print(f"{name:>5}: held-out loss {loss:.3f}, {parameters:,} parameters, {milliseconds:.1f} ms CPU per step")
    for number, block in enumerate(models["MoE"].blocks):
        shares = " ".join(f"{share:5.1%}" for share in block.mlp.expert_utilization().tolist())
        print(f"layer {number}, share of the held-out slots of each expert: {shares}")


if __name__ == "__main__":
    main()
