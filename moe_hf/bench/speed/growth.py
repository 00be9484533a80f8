"""Names of arms with few and with many experts in one growth group, and the group taken apart by them."""

from moe_hf.bench.harness.results import GroupResult

GROWTH = "growth"
FEW, MANY = 8, 64


def at(name: str, num_experts: int) -> str:
    """The name of an arm in a growth group.

    >>> at("sorted", 8)
    'sorted, E=8'
    """
    return f"{name}, E={num_experts}"


def split_by_experts(group: GroupResult) -> list[GroupResult]:
    """A growth group as one group per number of experts, its arms under their backends' names; others as they are."""
    if group.case != GROWTH:
        return [group]
    parts = []
    for num_experts in (FEW, MANY):
        size, ending = group.size._replace(num_experts=num_experts), at("", num_experts)
        arms = [arm._replace(name=arm.name.removesuffix(ending)) for arm in group.arms if arm.name.endswith(ending)]
        parts.append(group._replace(size=size, arms=arms))
    return parts
