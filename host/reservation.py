"""How much memory a ReNO run asks the host for. The host reserves for sampling; the way back needs many times that."""

import logging
import math
from typing import Literal

import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..methods.rewards import Reward
from .encoders import host_encoders

LOGGER = logging.getLogger(__name__)
Memory = Literal["auto", "fast", "low"]

# Times BaseModel.memory_required of one image, for each evaluation of the network that the gradient goes through.
# Counted in SDXL's full-size U-Net (bench/reno_memory.py; bytes alive in fp16 with fused attention, in MiB):
#                 host's estimate   sampling   fast            low
#     512 px                 65.5       39.4   1293.2 (19.7x)  147.2 (2.25x)
#     1024 px               262.1      157.5   5099.5 (19.5x)  588.3 (2.24x)
FAST, LOW = 20.0, 2.5


class Reservation:
    """A wrapper of the host's prepare_sampling that asks for the activations of one run, and decides what `auto` means.

    Attributes:
        low: whether the run recomputes blocks; known once the host has prepared.
    """

    def __init__(self, memory: Memory, reward: Reward, steps: int, cfg: float | None):
        self.memory, self.reward, self.steps, self.cfg = memory, reward, steps, cfg
        self.low = memory == "low"

    def __call__(self, executor, model: comfy.model_patcher.ModelPatcher, noise_shape, conds: dict, *args, **kwargs):
        shape = tuple(noise_shape)
        image = model.model.memory_required([1, *shape[1:]])
        passes = self.steps * _conditions(conds, self.cfg)
        fast, low = (self._bytes(image * factor * passes, shape) for factor in (FAST, LOW))
        if self.memory == "auto":
            room = _room([model, *model.get_nested_additional_models()], model.load_device)
            self.low = fast > room
            if self.low:
                LOGGER.info(
                    "Optimize Noise: keeping all activations needs about %.1f GB, and %.1f GB are free: low memory mode.",
                    fast / 1e9,
                    max(0.0, room / 1e9),
                )
        # the host's estimate grows with the batch, so as many images as take the memory that this run needs
        images = math.ceil((low if self.low else fast) / image)
        return executor(model, (images, *shape[1:]), conds, *args, **kwargs)

    def _bytes(self, network_per_image: float, shape: tuple[int, ...]) -> float:
        encoders = host_encoders(self.reward)
        rewards_per_image = sum(encoder.memory_per_item(torch.Size(shape)) * encoder.way_back for encoder in encoders)
        return shape[0] * (network_per_image + rewards_per_image)


def _conditions(conds: dict, cfg: float | None) -> int:
    """How often one step evaluates the network for an image; the host leaves out the negative prompt at cfg 1."""
    skipped = "negative" if cfg is not None and math.isclose(cfg, 1.0) else None
    return max(1, sum(len(entries or []) for name, entries in conds.items() if name != skipped))


def _room(patchers: list, device) -> float:
    """Bytes left for activations on the device once these models are there and the host has moved all others out."""
    free = mm.get_free_memory(device)
    if mm.is_device_cpu(device):
        return free  # the weights lie there already, and stay
    movable = sum(
        m.model_loaded_memory() for m in mm.current_loaded_models if m.model is not None and m.device == device
    )
    return free + movable - sum(patcher.model_size() for patcher in patchers)
