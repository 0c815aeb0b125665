"""NOISE output of Optimize Noise and Search Best Images."""

from collections.abc import Sequence

from torch import Tensor


class OptimizedNoise:
    """A NOISE value that holds the noise itself, one per item of the batch.

    Attributes:
        noise: (B, C, H, W) or (B, C, T, H, W) of unit variance, on the CPU. seed: of the noise it started from.
        batch_index: which item of its seed each one is, as the host's own noise counts them; default 0 to B − 1.
        made: what was done with it, for messages.
    """

    def __init__(self, noise: Tensor, seed: int, batch_index: Sequence[int] | None = None, made: str = "optimised"):
        self.noise, self.seed, self.made = noise, seed, made
        self.batch_index = [*range(len(noise))] if batch_index is None else [int(i) for i in batch_index]

    def generate_noise(self, latent: dict) -> Tensor:
        """Noise for the items of a LATENT: by its `batch_index`, and in order where it has none.

        Raises:
            ValueError: it has another size, more items than were optimised, or items that were not.
        """
        shape = latent["samples"].shape
        if shape[1:] != self.noise.shape[1:]:
            raise ValueError(
                f"Got a latent of shape {tuple(shape)}, but this noise was {self.made} for {tuple(self.noise.shape)}. "
                "Use a latent of the same model, width and height."
            )
        return self.noise[self._places(latent.get("batch_index"), shape[0])]

    def _places(self, batch_index: Sequence[int] | None, size: int) -> list[int]:
        """Index of the stored noise for each item."""
        if batch_index is None:
            if size > len(self.noise):
                raise ValueError(
                    f"Got a batch of {size}, but noise was {self.made} for {len(self.noise)} images. Use at most as many."
                )
            return [*range(size)]
        wanted = [int(i) for i in batch_index]
        if len(wanted) != size:
            raise ValueError(
                f"Got a latent of {size} images whose batch_index names {len(wanted)}, expected one entry per image. "
                "Take the latent from the node that made the batch."
            )
        if unknown := sorted({*wanted} - {*self.batch_index}):
            raise ValueError(
                f"Got a latent with the items {unknown} of a batch, but noise was {self.made} for {sorted({*self.batch_index})}. "
                "Use the latents that came with it, or make it of the whole batch and select afterwards."
            )
        places: dict[int, list[int]] = {}
        for place, index in enumerate(self.batch_index):
            places.setdefault(index, []).append(place)
        # an index that was optimised several times gives each of its noises in turn
        return [places[index][wanted[:i].count(index) % len(places[index])] for i, index in enumerate(wanted)]
