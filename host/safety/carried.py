"""Verdicts that hold for later samplings of the same image: split sampling, hires passes, image to image."""

import torch
from torch import Tensor

from ...methods.guidance import ConceptMonitor
from ..sampling.steering import SAFETY, Steering
from .known_latents import ALIKE, KNOWN, LastPrediction, fingerprint, found_before


class SafetySteering(Steering):
    """Steering that belongs to Safety Guidance: it keeps its verdict of an image for later samplings.

    Attributes:
        carried: categories for which each image was flagged in an earlier sampling, bool (B, categories); None where none was.
    """

    name = SAFETY
    monitor: ConceptMonitor
    carried: Tensor | None = None

    def start(self) -> None:
        self.monitor.start(self.carried)

    def sampling(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **more
    ):  # fmt: skip
        """Wrapper of a whole sampling (the host's OUTER_SAMPLE)."""

        def sample(callback) -> Tensor:
            return super(SafetySteering, self).sampling(
                executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
            )

        if not self._carries(sampler, sigmas):
            return sample(callback)
        guider, whose, last, before = executor.class_obj, fingerprint(self.monitor.concepts), LastPrediction(callback), self.carried
        earlier = found_before(whose, guider, noise, latent_image, sigmas)
        nothing = (False,) * len(self.monitor.concepts.names)
        self.carried = torch.tensor([one or nothing for one in earlier]) if any(earlier) else None
        try:
            samples = sample(last)
            flagged = self.monitor.flagged
            if flagged is not None and len(flagged) == len(samples):
                found = [tuple(categories) if any(categories) else None for categories in flagged.tolist()]
                remember(whose, guider, samples, sigmas, last, found, [ALIKE] * len(found))
            return samples
        finally:
            self.carried = before

    def _carries(self, sampler, sigmas: Tensor) -> bool:
        """Return true if a sampling makes one image of each item, which another sampling may go on with."""
        return len(sigmas) > 1 and not draws_again(sampler)


def draws_again(sampler) -> bool:
    """Return true for a sampler that makes its images more than once, as Optimize Noise does."""
    return getattr(sampler, "draws_again", False)


def remember(whose: bytes, guider, samples: Tensor, sigmas: Tensor, last: LastPrediction, found: list, least: list) -> None:
    """Keep what was found in the latents of a sampling, as the host hands them on: with the noise that is left, and without."""
    KNOWN.remember(whose, samples, found, least)
    denoised = last.raw(guider, sigmas)
    if denoised is not None and denoised.shape == samples.shape:
        KNOWN.remember(whose, denoised, found, least)
