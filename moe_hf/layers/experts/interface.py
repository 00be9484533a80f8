"""The table of experts backends that this package's own experts look into."""

from transformers.integrations.moe import ExpertsInterface

# Its own entries go before the global ones, where another copy of this package, which an exported model brought along,
# may have put its backends under the same names.
OWN_EXPERTS_FUNCTIONS = ExpertsInterface()
"""transformers' table, in which `register_experts_backends` enters the backends of this copy of the package."""
