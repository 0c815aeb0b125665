"""Cost of guidance in a sampling step: an evaluation of a Latent-CLIP, with backward or without, against SDXL's U-Net with cfg."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..methods.features import encode_latents
from ..models.config import latent_grid, published_configs
from ..models.latent_clip import LatentCLIP
from .reno_memory import SDXL_UNET
from .timing import alternate, device_name, use_cpu_host

STEP = "U-Net, cond and uncond"


def run(rounds: int = 3) -> dict:
    """FLOP of a step of 1024 pixels and of the encoder's forward and backward, and seconds of both at 512 pixels."""
    use_cpu_host()
    result: dict = {"device": device_name(), "dtype": "float32", "rounds": rounds}
    with torch.device("meta"):
        unet = _unet()
        flops = {STEP: _flops(lambda: _step(unet, torch.zeros(2, 4, 128, 128)))}
        for name, config in published_configs().items():
            tower, grid = LatentCLIP(config).visual, latent_grid(config)
            for what, function in (("look", _forward), ("look and way back", _forward_and_backward)):
                flops[f"{name}, {what}"] = _flops(lambda t=tower, g=grid, f=function: f(t, g, torch.zeros(1, 4, 128, 128)))
    result["1024 px"] = {
        name: {"gflop": round(count / 1e9, 1), "share_of_the_step": round(count / flops[STEP], 5)}
        for name, count in flops.items()
    }
    unet = _unet().train(False).requires_grad_(False)
    for parameter in unet.parameters():  # the host's layers leave their weights uninitialised
        parameter.normal_(std=0.02)
    timed = {STEP: lambda: _step(unet, torch.randn(2, 4, 64, 64))}
    for name, config in published_configs().items():
        tower, grid = LatentCLIP(config).visual.train(False).requires_grad_(False), latent_grid(config)
        for what, function in (("look", _forward), ("look and way back", _forward_and_backward)):
            timed[f"{name}, {what}"] = lambda t=tower, g=grid, f=function: f(t, g, torch.randn(1, 4, 64, 64))
    seconds = alternate(timed, rounds, at_least=2.0)
    result["512 px"] = {
        name: {"seconds": round(value, 4), "share_of_the_step": round(value / seconds[STEP], 5)}
        for name, value in seconds.items()
    }
    return result


def _unet() -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**SDXL_UNET, operations=comfy.ops.disable_weight_init)


@torch.no_grad()
def _step(unet: nn.Module, x: Tensor) -> Tensor:
    from ..host.memory.gradients import differentiable_attention

    # the host asks a real device for its free memory otherwise
    options = {"optimized_attention_override": differentiable_attention}
    context, y = torch.zeros(len(x), 77, 2048), torch.zeros(len(x), 2816)
    return unet(x, torch.ones(len(x)), context=context, y=y, transformer_options=options)


@torch.no_grad()
def _forward(tower: nn.Module, grid: int, latents: Tensor) -> Tensor:
    return encode_latents(tower, latents, grid, "tiles")


def _forward_and_backward(tower: nn.Module, grid: int, latents: Tensor) -> Tensor:
    latents.requires_grad_()
    return torch.autograd.grad(encode_latents(tower, latents, grid, "tiles").sum(), latents)[0]


def _flops(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
