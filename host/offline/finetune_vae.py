"""The host's half of `latent-clip finetune-vae`: the network of a VAE as the host's loader builds it, in float32 and free to change.

Nothing of the host's handling of memory is left on it, so that it is a plain module, which training moves and updates itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ...models.checkpoint import sha256_of
from ...models.shapes_world import FOLDER
from ...models.vae_signature import signature_of
from ..memory.gradients import checkpointed_blocks
from ..scorers.decoding import blocks_of
from .calibrate import SHAPES_WORLD, open_vae

DECODER = ("decoder.", "post_quant_conv.")


class TrainableVAE(nn.Module):
    """A VAE for pictures with a posterior, as training's `regularisers.Autoencoder`. Pictures are (B, side, side, 3) in 0..1.

    Args:
        network: the host's, with `encode`, `decode` and a Gaussian `regularization`. process_input: of the host's VAE.
        grad_checkpointing: the network's blocks are computed again in the backward pass; less memory, about a third more time.
    """

    def __init__(
        self, network: nn.Module, process_input: Callable[[Tensor], Tensor] = lambda image: image * 2 - 1, grad_checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.process_input, self.grad_checkpointing = _plain(network), process_input, grad_checkpointing
        dark, bright = process_input(torch.tensor([0.0, 1.0])).tolist()
        self.dark, self.span = dark, bright - dark

    def encode(self, pixels: Tensor, normal: Callable[..., Tensor] | None = None) -> dict[str, Tensor]:
        """`raw` (B, C, h, w), what a LATENT wire carries; `mean` and `log_variance` of the posterior; with unit noise also a `sample`."""
        moments: dict[str, Tensor] = {}

        def regularize(module: nn.Module, inputs: tuple, output: tuple) -> tuple | None:
            mean, log_variance = inputs[0].chunk(2, dim=1)
            moments.update(mean=mean, log_variance=log_variance.clamp(-30, 20))
            if normal is None:
                return None
            spread = (0.5 * moments["log_variance"]).exp()
            # the network may still fold and scale what comes out, so mean and sample go on together
            return torch.cat([mean, mean + spread * normal(*mean.shape).to(spread)]), None

        handle = self.network.regularization.register_forward_hook(regularize)
        try:
            with self._blocks():
                raw = self.network.encode(self.process_input(pixels.movedim(-1, 1)))
        finally:
            handle.remove()
        found = {"raw": raw} if normal is None else dict(zip(("raw", "sample"), raw.chunk(2)))
        return found | moments

    def decode(self, raw_latents: Tensor) -> Tensor:
        """Pictures about 0..1, not clamped."""
        with self._blocks():
            decoded = self.network.decode(raw_latents)
        return ((decoded - self.dark) / self.span).movedim(1, -1)

    def halves(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the encoder and of the decoder."""
        halves: tuple[list, list] = ([], [])
        for name, parameter in self.network.named_parameters():
            halves[name.startswith(DECODER)].append(parameter)
        return halves

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors of a file for the host's loader."""
        return self.network.state_dict()

    def _blocks(self):
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return nullcontext()
        return checkpointed_blocks(self.network, blocks_of(self.network))


def load_trainable_vae(name: str, grad_checkpointing: bool = False) -> tuple[TrainableVAE, dict, int, int]:
    """A VAE by its file, or Shapes World's; name and sha256 of its file, and its signature; channels and pixels a cell of its latents.

    Raises:
        ValueError: it is no VAE, or one whose encoder cannot be trained with a Latent-CLIP; names it.
    """
    path = FOLDER / "vae.safetensors" if name == SHAPES_WORLD else Path(name)
    tensors = comfy.utils.load_torch_file(str(path))
    with torch.inference_mode(False):
        vae = open_vae(tensors, torch.float32)
        vae.throw_exception_if_invalid()
        _check(vae, path.name, any(key.startswith("encoder.") for key in tensors))
        trainable = TrainableVAE(vae.first_stage_model, vae.process_input, grad_checkpointing)
    vae_info = {
        "name": name if name == SHAPES_WORLD else path.name, "sha256": sha256_of(path), "signature": signature_of(trainable.weights()),
    }  # fmt: skip
    return trainable, vae_info, vae.latent_channels, vae.spacial_compression_encode()


def _check(vae: comfy.sd.VAE, name: str, encodes: bool) -> None:
    network = vae.first_stage_model
    kind = type(network).__name__
    posterior = type(getattr(network, "regularization", None)).__name__
    if vae.latent_dim != 2 or "Video" in type(getattr(network, "decoder", None)).__name__:
        raise ValueError(f"{name}: a VAE for video or sound ({kind}), expected one for pictures, such as SDXL's or FLUX's.")
    if posterior != "DiagonalGaussianRegularizer":
        raise ValueError(
            f"{name}: a VAE without a posterior ({kind}), expected one that was trained with a KL term, such as SDXL's or FLUX's. "
            "Keep this VAE as it is and use latent-clip train."
        )
    if not encodes:
        raise ValueError(f"{name}: holds no encoder, which is what is trained. Use the full file of this VAE.")


def _plain(network: nn.Module) -> nn.Module:
    """Every weight a float32 Parameter of its own: neither an inference tensor, nor in pages that the host may take back."""
    with torch.inference_mode(False):
        for module in network.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach().clone().float())
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = buffer.detach().clone()
    return network
