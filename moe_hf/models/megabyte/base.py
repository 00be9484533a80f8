"""What the MegaByte classes tell transformers about themselves."""

from typing import Any, ClassVar

from torch import nn

from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.models.decoder import MoEPreTrainedModel


class MegaBytePreTrainedModel(MoEPreTrainedModel):
    """What the MegaByte classes tell transformers about themselves."""

    config: MegaByteWithMoEConfig
    # The layout of patches depends on how many bytes are real.
    _can_compile_fullgraph = False
    # The two decoders record for themselves.
    _can_record_outputs: ClassVar[dict[str, Any]] = {}

    @property
    def _is_stateful(self) -> bool:
        return True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the patch embedder and the local configuration follow."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        model: Any = self.base_model
        size = embedding.num_embeddings
        model.patching.embedding = self._get_resized_embeddings(model.patching.embedding, size)
        self.config.local_decoder_config.vocab_size = size
        return embedding
