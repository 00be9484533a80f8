"""How likely counts as uneven as these are by chance."""

import torch


def p_value(counts):
    """Pearson's chi-square test of counts that should all be equal."""
    count = torch.as_tensor(counts, dtype=torch.float64)
    statistic = ((count - count.mean()).square() / count.mean()).sum()
    freedom = torch.tensor((len(count) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()
