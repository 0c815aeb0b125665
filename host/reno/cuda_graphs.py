"""CUDA graphs for Optimize Noise on request, and the reason where they cannot be used."""

import logging

import torch
from torch import Tensor

from ...methods.capture import CapturedEncoder, CapturedGenerator, CudaRecording, captured_reward
from ...methods.reno import Generate
from ...methods.rewards import Reward

LOGGER = logging.getLogger(__name__)
DEVICES = ("cuda",)  # PyTorch's name of AMD's too
RECORDED = "recorded"


class Capture:
    """CUDA graphs of one run, whose evaluations are recorded and replayed.

    Attributes:
        generate, reward: to optimise with; as they were given where nothing can be recorded.
    """

    def __init__(
        self, generate: Generate, reward: Reward, size: int, device: torch.device, offloaded_bytes: int, compiled: bool
    ):
        """Args:
        generate: called as it is the first time, when gradients are checked.
        size: of the batch.
        device, offloaded_bytes: of the diffusion model, and those of its weights that are copied there for every evaluation.
        compiled: the host compiles models on that device, and manages their memory for it.
        """
        self.generate, self.reward, self._called = generate, reward, False
        self._why_not = _why_not(device, offloaded_bytes, compiled)
        self._encoders: list[CapturedEncoder] = []
        if not self._why_not:
            self._captured = CapturedGenerator(generate, size, CudaRecording)
            self.reward, self._encoders = captured_reward(reward, CudaRecording)
            self.generate = self._after_the_first
        else:
            LOGGER.warning("Optimize Noise: no CUDA graphs: %s.", self._why_not)

    def _after_the_first(self, noise: Tensor, items: list[int]) -> Tensor:
        if not self._called:
            self._called = True
            return self._captured.generate(noise, items)
        return self._captured(noise, items)

    @property
    def outcome(self) -> str:
        """`recorded`, or why some or all of it was called as it is; for the trace."""
        if self._why_not:
            return self._why_not
        why = [(self._captured.reason, "the model")] + [(encoder.reason, "an encoder") for encoder in self._encoders]
        reasons = [f"{what} could not be recorded: {reason}" for reason, what in why if reason]
        if reasons:
            LOGGER.warning("Optimize Noise: %s.", "; ".join(reasons))
        return "; ".join(reasons) or RECORDED


def _why_not(device: torch.device, offloaded_bytes: int, compiled: bool) -> str:
    if device.type not in DEVICES:
        return f"the model is on {device.type}, and CUDA graphs need an NVIDIA or AMD GPU"
    if compiled:
        return (
            "ComfyUI's compiler manages the memory of models here; to record this pack's own graphs, start ComfyUI with "
            "--disable-comfy-compiler"
        )
    if offloaded_bytes:
        return (
            f"{offloaded_bytes / 1e9:.1f} GB of the model's weights have no room on the GPU, and copies for every evaluation cannot be "
            "recorded"
        )
    return ""
