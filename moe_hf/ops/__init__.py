"""Functions on tensors: they know neither transformers nor configurations."""
