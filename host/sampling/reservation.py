"""Memory that a ReNO run asks the host for. The host reserves for sampling; a backward pass needs many times that."""

import logging
import math
from dataclasses import dataclass
from typing import Literal

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sampler_helpers
import torch

from ...methods.rewards import Reward
from ..memory.weights import bytes_when_cast
from ..scorers.encoders import forget_limits, host_encoders

LOGGER = logging.getLogger(__name__)
Memory = Literal["auto", "fast", "low"]

# Times the memory of sampling one image (`_sampling_bytes`), for each evaluation of the network that the gradient goes
# through. Counted in SDXL's full-size U-Net (bench/reno_memory.py; bytes alive in fp16 with fused attention, in MiB):
#                 host's estimate   sampling   fast            low
#     512 px                 65.5       39.4   1293.2 (19.7x)  147.2 (2.25x)
#     1024 px               262.1      157.5   5099.5 (19.5x)  588.3 (2.24x)
# and in the ControlNet of that size, 1024 px:            2349 (9.0x)     296 (1.13x)
# Attention that is not fused keeps its matrices too: 10611 (40.5x) and 1403 (5.35x) at 1024 px.
FAST, LOW = 20.0, 2.5
CONTROL = 0.5  # evaluations of the U-Net that one of a ControlNet costs
STREAMED = 0.02  # of the weights that are cast for every use: those of the block that is computed again
UNFUSED = {FAST: 21.0, LOW: 3.2}  # more, at so many latent cells:
UNFUSED_CELLS = 128 * 128


@dataclass(frozen=True)
class MemoryUse:
    """Memory use of a run: recomputed blocks, offloaded weights, CUDA graphs.

    Attributes:
        checkpointed_blocks: blocks that were recomputed in the backward pass; 0 with all activations kept.
        offloaded_bytes: weights that had no room on the device and were copied there for every evaluation.
        cuda_graphs: `recorded`, or why not; "" where nobody asked.
    """

    checkpointed_blocks: int = 0
    offloaded_bytes: int = 0
    cuda_graphs: str = ""


class Reservation:
    """Wrapper of the host's prepare_sampling that asks for the activations of one run, and decides `auto`.

    Attributes:
        low: whether the run recomputes blocks; known once the host has prepared.
        resident: whether weights that the host would cast for every use are cast once, for the whole run.
    """

    def __init__(self, memory: Memory, reward: Reward, steps: int, batch: int, guider, validation: Reward | None = None):
        self.memory, self.reward, self.steps, self.batch, self.guider = memory, reward, steps, batch, guider
        self.validation = validation
        self.low, self.resident = memory == "low", memory != "low"

    def __call__(self, executor, model: comfy.model_patcher.ModelPatcher, noise_shape, conds: dict, *args, **kwargs):
        forget_limits([e for reward in (self.reward, self.validation) if reward is not None for e in host_encoders(reward)])
        shape, device = (self.batch, *noise_shape[1:]), model.load_device
        passes = self.steps * _evaluations(conds, skips_negative(self.guider))
        cells = math.prod(shape[2:]) * prompt_factor(model.model, shape, conds)
        fast, low = (self._bytes(_per_evaluation(model, cells, factor) * passes, shape) for factor in (FAST, LOW))
        cast = bytes_when_cast(model)
        room = room_beside(model, conds, device) - cast
        if self.memory == "auto":
            self.low = fast > room
            if self.low:
                LOGGER.info(
                    "Optimize Noise: keeping all activations needs about %.1f GB, and %.1f GB are free: low memory mode.",
                    fast / 1e9,
                    max(0.0, room / 1e9),
                )
        self.resident = not self.low or (cast > 0 and low <= room)
        # the host's estimate grows with the batch, so as many images as take the memory that this run needs
        asked = (low if self.low else fast) + cast * (1 if self.resident else STREAMED)
        images = images_of(asked, model, shape)
        return executor(model, (max(images, noise_shape[0]), *shape[1:]), conds, *args, **kwargs)

    def _bytes(self, network_per_image: float, shape: tuple[int, ...]) -> float:
        encoders = host_encoders(self.reward)
        rewards_per_image = sum(encoder.memory_per_item(torch.Size(shape)) * encoder.backward_cost for encoder in encoders)
        validating = [] if self.validation is None else host_encoders(self.validation)
        validation_per_image = sum(encoder.memory_per_item(torch.Size(shape)) for encoder in validating)  # no backward pass
        return shape[0] * (network_per_image + rewards_per_image + validation_per_image)


def images_of(memory: float, model, shape: tuple[int, ...]) -> int:
    """Number of images of this shape that take that much memory (bytes) by the host's own estimate."""
    return math.ceil(memory / model.model.memory_required([1, *shape[1:]]))


def prompt_factor(model, shape: tuple[int, ...], conds: dict[str, list[dict]]) -> float:
    """Factor on the memory of an image alone due to its prompt: reference images count like it."""
    shapes: dict[str, list] = {}
    for entry in (entry for group in conds.values() for entry in group or []):
        for name, of_one in model.extra_conds_shapes(**entry).items():
            shapes[name] = [max([of_one, *shapes.get(name, [])], key=math.prod)]
    image = [1, *shape[1:]]
    return model.memory_required(image, cond_shapes=shapes) / model.memory_required(image)


def _per_evaluation(model, cells: float, factor: float) -> float:
    """Bytes that one evaluation with gradients needs for one image of so many latent cells."""
    if not _fused_attention(model.load_device):
        factor += UNFUSED[factor] * cells / UNFUSED_CELLS
    return factor * _sampling_bytes(model.model, cells)


def _sampling_bytes(model, cells: float) -> float:
    """The host's estimate of sampling one image with fused attention; without, its own counts the matrices already."""
    return cells * model.get_dtype_inference().itemsize * 0.01 * model.memory_usage_factor * 2**20


def _fused_attention(device: torch.device) -> bool:
    """Return True if PyTorch's attention on this device keeps no matrix for the backward pass."""
    return mm.is_device_cpu(device) or mm.xformers_enabled() or mm.pytorch_attention_flash_attention()


def skips_negative(guider) -> bool:
    """Return True if the host leaves out the negative prompt, as at cfg 1 unless a node has disabled that."""
    cfg = getattr(guider, "cfg", None)
    return cfg is not None and math.isclose(cfg, 1.0) and not guider.model_options.get("disable_cfg1_optimization")


def _evaluations(conds: dict, skips_negative: bool) -> float:
    """Evaluations of the network for an image in one step; a ControlNet counts as the part of it that it copies."""
    entries = [
        entry for name, group in conds.items() if not (skips_negative and name == "negative") for entry in group or []
    ]
    controls = sum(_chain_length(entry.get("control")) for entry in entries)
    return max(1, len(entries)) + CONTROL * controls


def _chain_length(control) -> int:
    return 0 if control is None else 1 + _chain_length(control.previous_controlnet)


def room_beside(model, conds: dict, device) -> float:
    """Bytes left for activations on the device after these models are loaded and the host has moved all others out."""
    free = mm.get_free_memory(device)
    if mm.is_device_cpu(device):
        return free  # the weights lie there already, and stay
    movable = sum(
        m.model_loaded_memory() for m in mm.current_loaded_models if m.model is not None and m.device == device
    )
    others, _ = comfy.sampler_helpers.get_additional_models(conds, model.model_dtype())
    others = [*others, *model.get_nested_additional_models()]
    # a dynamic model takes what is left, and its weights are counted where they are cast
    whole = sum(p.model_size() for p in [model, *others] if p.load_device == device and not p.is_dynamic())
    return free + movable - whole - mm.extra_reserved_memory()
