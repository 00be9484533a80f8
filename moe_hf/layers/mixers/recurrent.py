"""What mixers share that carry a state from token to token: states in the cache, and long inputs in stretches.

Shapes: B batch, S positions of this call, D width.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeGuard

import torch

from moe_hf.layers.caches.states import states_of
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.ops.sequence.backends import Kernel, pick_kernel


class RecurrentMixer(Mixer):
    """Mixes tokens by what a state holds of those before.

    Attributes:
        state_type: a NamedTuple of the states, each None before the first token; its fields are their names in the
            cache.
        stretch_length: positions that are worked through at a time where no gradient is asked for.
    """

    state_type: ClassVar[type[Any]]
    stretch_length: ClassVar[int] = 512

    @abstractmethod
    def mix(self, x_BSD: torch.Tensor, inputs: LayerInputs, before: Any, keeps_state: bool) -> tuple[MixerOutput, Any]:
        """Some tokens, mixed, and the states after the last real one.

        Args:
            x_BSD: the tokens of a call, or of a stretch of it.
            inputs: as in `forward`.
            before: the states, a `state_type`.
            keeps_state: whether they will be read again; else they may be None.
        """

    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> MixerOutput:
        """As `Mixer.forward`; there are no weights."""
        states = states_of(inputs.cache, self.layer_idx)
        before = self.state_type(*(None if states is None else states.read(name) for name in self.state_type._fields))
        inputs = self.prepared(inputs)
        if self._at_once(x_BSD.shape[1]):
            mixed, after = self.mix(x_BSD, inputs, before, keeps_state=states is not None)
        else:
            mixed, after = self._mix_in_stretches(x_BSD, inputs, before)
        if states is not None:
            for name, state in after._asdict().items():
                if state is not None:
                    states.write(name, state)
        return mixed

    def prepared(self, inputs: LayerInputs) -> LayerInputs:
        """The inputs with what is computed once for all stretches."""
        return inputs

    def is_step(self, state: torch.Tensor | None, x_BSD: torch.Tensor, inputs: LayerInputs) -> TypeGuard[torch.Tensor]:
        """Whether this is one more token where there are others before it, as in decoding; then `state` is a tensor.

        Args:
            state: that of the recurrence.
            x_BSD: the tokens, or anything else with their positions.
            inputs: as in `forward`.
        """
        return state is not None and x_BSD.shape[1] == 1 and inputs.document_starts is None

    def recur(
        self,
        form: Callable[..., Any],
        kernels: tuple[Kernel, ...],
        parts: tuple[torch.Tensor, ...],
        inputs: LayerInputs,
        state: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """What a recurrence gives for a sequence, and its state after that.

        Args:
            form: this package's own code for it.
            kernels: those of other packages that may take its place.
            parts: what it takes, all on one device.
            inputs: as in `forward`.
            state: as in `is_step`.
            **options: of the recurrence.
        """
        kernel = pick_kernel(self.config.mixer_backend, kernels, parts[0].device)
        run = form if kernel is None else kernel.run
        return run(*parts, initial_state=state, **inputs.layout, **options)

    def _at_once(self, length: int) -> bool:
        # Stretches keep small what lies between the projections. A gradient would keep all of it anyway, and a compiler
        # would make one graph per number of stretches.
        return torch.is_grad_enabled() or torch.compiler.is_compiling() or length <= self.stretch_length

    def _mix_in_stretches(self, x_BSD: torch.Tensor, inputs: LayerInputs, before: Any) -> tuple[MixerOutput, Any]:
        # Written to in place, which is safe without gradients, and spares the copy that joining the stretches would be.
        room, values, start = None, [], 0
        for part_BSD, part in inputs.stretches(x_BSD, self.stretch_length):
            mixed, before = self.mix(part_BSD, part, before, keeps_state=True)
            # Under autocast the tokens come out in another type than they came in.
            out_BSD = room = mixed.out_BSD.new_empty(x_BSD.shape) if room is None else room
            out_BSD[:, start : start + part_BSD.shape[1]] = mixed.out_BSD
            start += part_BSD.shape[1]
            if mixed.first_value is not None:
                values.append(mixed.first_value)
        return MixerOutput(out_BSD, first_value=torch.cat(values, dim=1) if values else None), before
