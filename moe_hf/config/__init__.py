"""Words and numbers that describe a decoder: no tensors, no modules."""
