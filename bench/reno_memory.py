"""Memory of a backward pass: bytes alive in SDXL's U-Net and VAE for sampling, and for ReNO in both memory modes.

Full size, on the meta device: every tensor has its shape, dtype and life time, and no storage. The host asks for the
memory of sampling only; host/sampling/reservation.py multiplies that by the factors found here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.config import latent_grid, published_configs
from ..models.latent_clip import LatentCLIP
from .scoring import SDXL_VAE
from .timing import use_cpu_host

META = torch.device("meta")
SDXL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
    "num_classes": "sequential", "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True,
    "use_spatial_transformer": True, "legacy": False, "use_checkpoint": False,
}  # fmt: skip


def run() -> dict:
    """Peaks in MiB for one image in fp16, and how many times the host's own estimate they are."""
    use_cpu_host()
    return {
        "what": "bytes alive, one image, fp16, fused attention unless said otherwise",
        "U-Net of SDXL": {f"{8 * side} px": _unet(side) for side in (64, 128)},
        "U-Net of SDXL, fp8 weights cast for every use": {
            f"{8 * side} px": _unet(side, fp8=True) for side in (64, 128)
        },
        "U-Net of SDXL, attention that is not fused": {
            f"{8 * side} px": _unet(side, fused=False) for side in (64, 128)
        },
        "ControlNet of SDXL": {f"{8 * side} px": _controlnet(side) for side in (64, 128)},
        **{f"VAE decoder, {name}": {f"{8 * side} px": _vae(name, side) for side in (64, 128)} for name in _vaes()},
        "Latent-CLIP": {name: _tower(config) for name, config in published_configs().items()},
    }


def _unet(side: int, fp8: bool = False, fused: bool = True) -> dict:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    weights, operations = (
        (torch.float8_e4m3fn, comfy.ops.manual_cast) if fp8 else (torch.float16, comfy.ops.disable_weight_init)
    )
    network = UNetModel(**SDXL_UNET, dtype=weights, device=META, operations=operations)
    network.dtype = torch.float16
    attention = _fused_attention if fused else _unfused_attention
    return _network(
        network,
        side,
        lambda x: network(x, **_conditions(), transformer_options={"optimized_attention_override": attention}),
    )


def _controlnet(side: int) -> dict:
    """A ControlNet is half a U-Net; its attention takes no override, so the host's own function is replaced."""
    import comfy.ldm.modules.attention as attention
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    config = {key: value for key, value in SDXL_UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    network = ControlNet(
        **config, hint_channels=3, dtype=torch.float16, device=META, operations=comfy.ops.disable_weight_init
    )
    hint = torch.empty(1, 3, 8 * side, 8 * side, dtype=torch.float16, device=META)

    def forward(x: Tensor) -> Tensor:
        outputs = tree_leaves(network(x=x, hint=hint, **_conditions()))
        return sum((tensor.float().sum() for tensor in outputs), x.new_zeros(()).float())

    names = ("optimized_attention", "optimized_attention_masked")
    before = {name: getattr(attention, name) for name in names}
    for name in names:
        setattr(attention, name, partial(_fused_attention, None))
    try:
        return _network(network, side, forward)
    finally:
        for name, function in before.items():
            setattr(attention, name, function)


def _conditions() -> dict[str, Tensor]:
    return {
        "timesteps": torch.empty(1, device=META),
        "context": torch.empty(1, 77, 2048, dtype=torch.float16, device=META),
        "y": torch.empty(1, 2816, dtype=torch.float16, device=META),
    }


def _network(network: torch.nn.Module, side: int, forward: Callable[[Tensor], Tensor]) -> dict:
    """Peaks of sampling, and of both memory modes of Optimize Noise."""
    import comfy.supported_models

    from ..host.memory.gradients import checkpointed_blocks

    network.train(False).requires_grad_(False)

    def peaks(gradient: bool) -> int:
        noise = torch.empty(1, 4, side, side, dtype=torch.float16, device=META).requires_grad_(gradient)
        return peak(lambda: forward(noise), noise if gradient else None)

    with checkpointed_blocks(network):
        low = peaks(True)
    # BaseModel.memory_required with fused attention: area × bytes × 0.01 × factor, in MiB
    estimate = side * side * 2 * 0.01 * comfy.supported_models.SDXL.memory_usage_factor
    return _row({"sampling": peaks(False), "fast": peaks(True), "low": low}, estimate)


def _vaes() -> dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int]]:
    """Family → its network, a latent's shape without height and width, and VAE.memory_used_decode for one latent cell, in numbers."""
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.wan.vae import WanVAE
    from comfy.taesd.taesd import TAESD

    wan = {"dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    return {
        "SDXL": (lambda: AutoencoderKL(ddconfig=SDXL_VAE, embed_dim=4), (1, 4), 2178 * 64),
        "Wan 2.1": (lambda: WanVAE(**wan), (1, 16, 1), 2200 * 64),
        "TAESD": (lambda: TAESD(latent_channels=4), (1, 4), 2178 * 64),
    }


def _vae(name: str, side: int) -> dict:
    from ..host.memory.gradients import checkpointed_blocks
    from ..host.scorers.decoding import blocks_of

    make, shape, numbers = _vaes()[name]
    with torch.device("meta"):
        decoder = make().to(torch.float16).train(False).requires_grad_(False)
    for module in decoder.modules():
        if hasattr(module, "optimized_attention"):
            setattr(module, "optimized_attention", _fused_attention_2d)  # noqa: B010 - not a submodule

    def peaks(gradient: bool) -> int:
        latents = torch.empty(*shape, side, side, dtype=torch.float16, device="meta").requires_grad_(gradient)
        return peak(lambda: decoder.decode(latents), latents if gradient else None)

    with checkpointed_blocks(decoder, blocks_of(decoder)):
        again = peaks(True)
    estimate = numbers * side * side * 2 / 2**20
    return _row({"decoding": peaks(False), "decoding and back": peaks(True), "blocks computed again": again}, estimate)


def _tower(config: dict) -> dict:
    with torch.device("meta"):
        tower = LatentCLIP(config).visual.to(torch.float16).train(False).requires_grad_(False)
    grid, vision = latent_grid(config), config["vision_cfg"]

    def peaks(gradient: bool) -> int:
        latents = torch.empty(1, 4, grid, grid, dtype=torch.float16, device="meta").requires_grad_(gradient)
        return peak(lambda: tower(latents), latents if gradient else None)

    tokens = (grid // vision["patch_size"]) ** 2 + 1
    estimate = 2 * tokens * vision["width"] * 12 * 2 / 2**20  # HostedLatentEncoder.memory_per_item, in MiB
    return _row({"encoding": peaks(False), "encoding and back": peaks(True)}, estimate)


def _row(peaks: dict[str, int], estimate: float) -> dict:
    megabytes = {name: round(value / 2**20, 1) for name, value in peaks.items()}
    return {
        "host's estimate": round(estimate, 1),
        "peak": megabytes,
        "over the estimate": {name: round(value / estimate, 2) for name, value in megabytes.items()},
    }


class Alive(TorchDispatchMode):
    """Torch dispatch mode that counts the bytes of living storages."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_reference: weakref.ref) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak(forward, leaf: Tensor | None) -> int:
    """Most bytes alive at a time in `forward`, and in the backward pass to `leaf` if there is one."""
    with Alive() as alive, torch.inference_mode() if leaf is None else nullcontext():
        result = forward()
        if leaf is not None:
            torch.autograd.grad(result, leaf, torch.empty_like(result))
    return alive.peak


def _fused_attention(_function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """Attention that keeps no matrix of weights, as on a GPU; the meta device would choose the one that does."""
    batch, _, width = q.shape
    q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return result.transpose(1, 2).reshape(batch, -1, width)


def _unfused_attention(_function, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
    """Attention that keeps its matrix for the backward pass: MPS, ROCm without its fused kernels, DirectML."""
    batch, _, width = q.shape
    q, k, v = (x.view(batch, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    scores = torch.matmul(q * (width // heads) ** -0.5, k.transpose(-2, -1)).softmax(-1)
    return torch.matmul(scores, v).transpose(1, 2).reshape(batch, -1, width)


def _fused_attention_2d(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, channels, height, width = q.shape
    q, k, v = (x.view(batch, 1, channels, height * width).transpose(2, 3) for x in (q, k, v))
    result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return result.transpose(2, 3).reshape(batch, channels, height, width)
