"""VAEs of the host's families with random weights, as small as the host's own loader lets them be."""

import torch

SIDE = 8  # latent cells


def tiny_vae(family: str):
    """A `comfy.sd.VAE` that the host has recognised by the names and shapes of its tensors; the encoders may be missing."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.VAE(sd=tiny_state(family))


def tiny_state(family: str, channels: int | None = None) -> dict[str, torch.Tensor]:
    """What its file holds; `channels`: of a TAESD, 4 by default."""
    network = FAMILIES[family]() if channels is None else _taesd(channels)
    generator = torch.Generator().manual_seed(0)
    state = {name: seeded(name, tensor, generator) for name, tensor in network.state_dict().items()}
    if family == "taesd":  # as it stands in a checkpoint: SDXL's scale
        state |= {"vae_scale": torch.tensor(0.13025), "vae_shift": torch.tensor(0.0)}
    return state


def raw_latents(vae, batch: int = 2, frames: int = 0) -> torch.Tensor:
    """(batch, C, SIDE, SIDE), or (batch, C, frames, SIDE, SIDE)."""
    shape = (batch, vae.latent_channels, *([frames] if frames else []), SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def seeded(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values for a weight of that name and shape, with which a picture comes through."""
    if name.endswith(("gamma", "running_var")) or (tensor.ndim == 1 and name.endswith("weight")):
        return torch.ones(tensor.shape)
    if tensor.ndim < 2:
        return torch.zeros(tensor.shape)
    last = name.endswith(("conv_out.weight", "head.2.weight"))
    spread = 0.2 if last else 1.0  # most pixels within 0 and 1, where they have a gradient
    return torch.randn(tensor.shape, generator=generator) * spread * (2 / tensor[0].numel()) ** 0.5


def _kl(z_channels: int) -> torch.nn.Module:
    """The decoder alone: its width is read off, an encoder's is fixed."""
    from comfy.ldm.modules.diffusionmodules.model import Decoder

    network = torch.nn.Module()
    network.decoder = Decoder(
        ch=32, out_ch=3, ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], in_channels=3, resolution=256,
        z_channels=z_channels,
    )  # fmt: skip
    network.post_quant_conv = torch.nn.Conv2d(z_channels, z_channels, 1)
    return network


def _flux2() -> torch.nn.Module:
    """32 channels, folded two by two into 128 that a batch norm scales."""
    network = _kl(32)
    network.bn = torch.nn.BatchNorm2d(128, affine=False)
    return network


def _taesd(channels: int = 4) -> torch.nn.Module:
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=channels)


def _wan() -> torch.nn.Module:
    from comfy.ldm.wan.vae import WanVAE

    return WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True])


FAMILIES = {"kl": lambda: _kl(4), "flux": lambda: _kl(16), "flux2": _flux2, "taesd": _taesd, "wan": _wan}
