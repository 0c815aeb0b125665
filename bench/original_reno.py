"""The original ReNO's loop as published (github.com/ExplainableML/ReNO, training/trainer.py), for one image, on our networks.

Its order and its habits: the prompt is encoded again by both text encoders on every iteration, the picture is decoded on
every iteration because its rewards read pixels, every number is read back where it is logged, the U-Net recomputes its
blocks in the backward pass (it always enables gradient checkpointing), and the first and best picture become 8-bit images.
"""

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

Apply = Callable[[Tensor, str], Tensor]
Loss = Callable[[Tensor, str], Tensor]


def original_loop(
    apply: Apply,
    loss_of: Loss,
    latents: Tensor,
    prompt: str,
    iterations: int,
    learning_rate: float = 5.0,
    regularization_weight: float = 0.01,
    grad_clip: float = 0.1,
) -> tuple[Image.Image, Image.Image, float]:
    """Optimise one starting noise (1, C, H, W).

    Args:
        apply: (noise, prompt) → picture (1, 3, H, W) in 0..1, with everything that lies between.
        loss_of: (picture, prompt) → loss, lower is better.

    Returns:
        (first picture, best picture, best loss).
    """
    latents = torch.nn.Parameter(latents.clone())
    optimizer = torch.optim.SGD([latents], lr=learning_rate, momentum=0.9, nesterov=True)
    latent_dim = math.prod(latents.shape[1:])
    best_loss, best_image, initial_image = math.inf, None, None
    for iteration in range(iterations):
        optimizer.zero_grad()
        image = apply(latents, prompt)
        if initial_image is None:
            initial_image = _to_image(image)
        loss = loss_of(image, prompt)
        reward_loss = loss.item()
        norm = torch.linalg.vector_norm(latents).to(torch.float32)
        total = loss + regularization_weight * (0.5 * norm**2 - (latent_dim - 1) * torch.log(norm))
        norm.item()  # it goes to the log
        if best_image is None or reward_loss < best_loss:
            best_loss, best_image = reward_loss, image
        if iteration != iterations - 1:
            total.backward()
            torch.nn.utils.clip_grad_norm_(latents, grad_clip)
            optimizer.step()
    if initial_image is None or best_image is None:
        raise ValueError(f"Got {iterations} iterations, expected 1 or more.")
    return initial_image, _to_image(best_image), best_loss


def _to_image(picture: Tensor) -> Image.Image:
    pixels = picture.detach().cpu().permute(0, 2, 3, 1).float().numpy()
    return Image.fromarray((pixels * 255).round().astype("uint8")[0])
