"""Verdicts that hold for later samplings of the same image: split sampling, hires passes, image to image."""

import torch
from torch import Tensor

from ...methods.guidance import ConceptMonitor
from ..sampling.steering import Steering
from .known_latents import ALIKE, KNOWN, LastPrediction, fingerprint, found_before


class CarriesVerdicts(Steering):
    """Steering that keeps to what it has seen of an image in an earlier sampling.

    Attributes:
        watch: None where nothing is kept out.
        carried: what was seen before of each item of the sampling that goes on now, (B, categories).
    """

    watch: ConceptMonitor | None = None
    carried: Tensor | None = None

    def start(self) -> None:
        if self.watch is not None:
            self.watch.start(self.carried)

    def sampling(
        self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None, **more
    ):  # fmt: skip
        """Wrapper of a whole sampling (the host's OUTER_SAMPLE)."""

        def sample(callback) -> Tensor:
            return super(CarriesVerdicts, self).sampling(
                executor, noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **more
            )

        if not self._carries(sampler, sigmas):
            return sample(callback)
        guider, whose, last, before = executor.class_obj, fingerprint(self.watch.concepts), LastPrediction(callback), self.carried
        earlier = found_before(whose, guider, noise, latent_image, sigmas)
        nothing = (False,) * len(self.watch.concepts.names)
        self.carried = torch.tensor([one or nothing for one in earlier]) if any(earlier) else None
        try:
            samples = sample(last)
            seen = self.watch.seen
            if seen is not None and len(seen) == len(samples):
                found = [tuple(row) if any(row) else None for row in seen.tolist()]
                remember(whose, guider, samples, sigmas, last, found, [ALIKE] * len(found))
            return samples
        finally:
            self.carried = before

    def _carries(self, sampler, sigmas: Tensor) -> bool:
        """Whether a sampling makes one image of each item, which another sampling may go on with."""
        return self.watch is not None and len(sigmas) > 1 and not getattr(sampler, "draws_again", False)


def remember(whose: bytes, guider, samples: Tensor, sigmas: Tensor, last: LastPrediction, found: list, least: list) -> None:
    """Keep what was found in the latents of a sampling, as the host hands them on: with the noise that is left, and without."""
    KNOWN.remember(whose, samples, found, least)
    denoised = last.raw(guider, sigmas)
    if denoised is not None and denoised.shape == samples.shape:
        KNOWN.remember(whose, denoised, found, least)
