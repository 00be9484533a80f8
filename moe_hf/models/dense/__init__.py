"""Dense checkpoints of other libraries become Mixtures of Experts, lazily."""
