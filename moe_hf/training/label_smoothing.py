"""Label smoothing for next-token prediction, as a term beside the model's own loss.

Shapes: B batch, S positions, V vocabulary.
"""

import torch

from moe_hf.ops.routing.balance import divisor


def label_smoothing_term(
    logits_BSV: torch.Tensor, labels_BS: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """What a smoothing factor of 1 adds to the cross-entropy (Szegedy et al. 2016, section 7).

    The smoothed loss is (1 - factor) * NLL of the target + factor * mean NLL of all words, so that factor times
    (logit of the target - mean logit) is all that it adds: the log-partition cancels.

    Args:
        logits_BSV: of each position's next token.
        labels_BS: the input ids themselves (they are shifted here); -100 where no loss is wanted.
        num_items: target tokens that the sum is divided by; None means those of `labels_BS`.

    Returns:
        scalar, float32; 0 where there is no target.
    """
    logits, target = logits_BSV[:, :-1].float(), labels_BS[:, 1:].to(logits_BSV.device)
    wanted = target != -100
    # `gather` takes no negative index; what it finds at 0 is masked out below.
    of_target = logits.gather(-1, target.masked_fill(~wanted, 0)[..., None])[..., 0]
    total = (of_target - logits.mean(dim=-1)).masked_fill(~wanted, 0.0).sum()
    return total / torch.as_tensor(divisor(wanted.sum() if num_items is None else num_items), device=total.device)
