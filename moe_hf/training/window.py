"""What is measured between two lines of a training log: routing, cross-entropy and speed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moe_hf.training.metrics import (
    CrossEntropyMeter,
    RoutingMeter,
    SpeedMeter,
    experts_per_token,
    routing_of_window,
    training_flops,
)


class LoggingWindow:
    """The meters of a model that trains.

    Attributes:
        meters: those whose sums all processes add up, by name; only what the model can tell of.
        speed: of this process.
    """

    def __init__(self, model: nn.Module) -> None:
        self.meters: dict[str, RoutingMeter | CrossEntropyMeter] = {}
        self.speed = SpeedMeter()
        self._flops = training_flops(model)
        self._routing: RoutingMeter | None = None
        self._cross_entropy: CrossEntropyMeter | None = None
        num_experts_per_tok = experts_per_token(model)
        if num_experts_per_tok:
            self._routing = self.meters["routing"] = RoutingMeter(num_experts_per_tok)
        if getattr(model, "loss_type", None) == "ForCausalLM":
            self._cross_entropy = self.meters["cross_entropy"] = CrossEntropyMeter()

    def reset(self) -> None:
        """Begin a new window now."""
        for meter in self.meters.values():
            meter.reset()
        self.speed.reset()

    def add_outputs(
        self,
        outputs: Mapping[str, Any],
        labels: torch.Tensor | None = None,
        answers: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        """Count one forward.

        Args:
            outputs: of the model.
            labels: (B, S), as the model got them.
            answers: (B, S), False at labels that evaluation would not count; None counts all.
            attention_mask: (B, S), nonzero at tokens that count; None counts all.
        """
        if self._cross_entropy is not None and labels is not None:
            if answers is None and outputs.get("cross_entropy") is not None:
                self._cross_entropy.update_by_mean(outputs["cross_entropy"], labels)
            elif outputs.get("logits") is not None:
                self._cross_entropy.update(outputs["logits"], labels, answers)
        if self._routing is not None and outputs.get("router_logits"):
            self._routing.update(
                outputs["router_logits"],
                attention_mask,
                outputs.get("router_experts"),
                outputs.get("router_dropped"),
                outputs.get("aux_loss"),
            )

    def add_batch(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> float | None:
        """Count a batch of (B, S, ...) tokens for the speed; its FLOPs, None where the model does not tell them."""
        if self._flops is None:
            return None
        shape = tokens.shape[:2]
        flops = self._flops.of_batch(shape.numel(), shape[1])
        # A mask of another form does not say which tokens are padding.
        padded = isinstance(attention_mask, torch.Tensor) and attention_mask.shape == shape
        # Not read here: that would wait for the device.
        self.speed.add(attention_mask.sum() if padded and attention_mask is not None else shape.numel(), flops)
        return flops

    def sums(self) -> dict[str, torch.Tensor]:
        """What this process has counted, by the meter's name."""
        return {name: meter.sums for name, meter in self.meters.items() if meter.sums is not None}

    def restore(self, sums: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Go on from the sums of a window that was left open; other entries are passed over."""
        for name, meter in self.meters.items():
            if name in sums:
                meter.sums = sums[name].to(device)

    def close(
        self, sums: Mapping[str, torch.Tensor], num_processes: int, peak_flops: float | None
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """The numbers of a log line and the lists that belong to it; a new window begins.

        Args:
            sums: of all processes together.
            num_processes: that train.
            peak_flops: of one device; None leaves the MFU out.
        """
        logs: dict[str, float] = {}
        details: dict[str, Any] = {}
        if "routing" in sums:
            routing = routing_of_window(sums["routing"])
            logs |= routing.scalars()
            details["layers"] = routing._asdict()
        if "cross_entropy" in sums:
            total, count = sums["cross_entropy"].tolist()
            logs |= {"cross_entropy": total / count} if count else {}
        logs |= self.speed.read(num_processes, peak_flops)
        self.reset()
        return logs, details
