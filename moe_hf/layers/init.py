"""What a module is that draws its own fresh weights."""

from abc import ABC, abstractmethod


class DrawsOwnWeights(ABC):
    """Mixed in by modules whose fresh weights are not just normal draws."""

    @abstractmethod
    def draw_weights(self, std: float, residual_std: float) -> None:
        """Give the parameters and buffers their first values, through `transformers.initialization` only.

        Those functions leave alone what was loaded from a checkpoint. The weights of nn.Linear, nn.Embedding and norms
        inside have been drawn when this is called (normal with `std`; biases 0; norms 1).

        Args:
            std: `initializer_range` of the configuration.
            residual_std: the smaller one for what is added to the residual stream.
        """
