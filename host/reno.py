"""ReNO inside the host: its guider, memory, previews and interruption around `methods.reno`."""

import copy
import logging
from contextlib import nullcontext

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ..methods.reno import RenoSettings, RenoState, optimize_noise
from ..methods.rewards import Reward
from ..methods.sampling import euler
from ..models.latent_spaces import LatentSpaceError
from .conditioning import cond_items, map_conds
from .encoders import host_encoders
from .gradients import checkpointed_blocks, differentiable_attention, gradients, ordinary
from .latents import check_model_space
from .live import LiveRun
from .reservation import Memory, Reservation
from .steering import begin_sampling

LOGGER = logging.getLogger(__name__)
MAX_STEPS = 4  # every step keeps its activations for the way back


class OptimizedNoise:
    """A NOISE value that holds the noise itself, one per item of the batch.

    Attributes:
        noise: (B, C, H, W) of unit variance, on the CPU. seed: of the noise it started from.
    """

    def __init__(self, noise: Tensor, seed: int):
        self.noise, self.seed = noise, seed

    def generate_noise(self, latent: dict) -> Tensor:
        """Noise for the items of a LATENT.

        Raises:
            ValueError: it has another size, or more items than were optimised.
        """
        shape = latent["samples"].shape
        if shape[-2:] != self.noise.shape[-2:] or len(shape) != 4 or shape[0] > len(self.noise):
            raise ValueError(
                f"Got a latent of shape {tuple(shape)}, but this noise was optimised for {tuple(self.noise.shape)}. "
                "Use a latent of the same width and height, and at most as many images."
            )
        return self.noise[: shape[0]].clone()


def run_reno(
    noise, guider, sigmas: Tensor, latent: dict, reward: Reward, settings: RenoSettings, memory: Memory
) -> tuple[RenoState, int]:
    """Optimise the noise that `guider` starts from.

    Args:
        noise, guider, sigmas, latent: as SamplerCustomAdvanced takes them; 1 to 4 steps.
        memory: `fast` keeps all activations, `low` recomputes the blocks on the way back, `auto` takes low where
            fast cannot fit, else tries fast and starts again in low after an out-of-memory error.

    Returns:
        (state with raw latents, number of checkpointed blocks of the run that succeeded).

    Raises:
        ValueError: sigmas without steps or with too many.
        LatentSpaceError: the model makes latents that the reward cannot read.
    """
    steps = len(sigmas) - 1
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(
            f"Got {steps} sampling steps, expected 1 to {MAX_STEPS}. Use a few-step model and a scheduler of so many steps."
        )
    check_model_space(guider.model_patcher, reward.space)
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent["samples"])
    if samples.ndim != 4:
        raise LatentSpaceError(
            f"Got a latent of shape {tuple(samples.shape)}, expected images (batch, channels, height, width)."
        )
    start = noise.generate_noise({**latent, "samples": samples})
    attempts: tuple[Memory, ...] = ("auto", "low") if memory == "auto" else (memory,)
    with LiveRun(reward, settings) as live:
        for attempt in attempts:
            reservation = Reservation(attempt, reward, steps, getattr(guider, "cfg", None))
            run = _RenoSampler(reward, settings, reservation, live)
            try:
                guider_with_models = _with_reward_models(guider, reward, reservation)
                guider_with_models.sample(
                    start, samples, run, sigmas, denoise_mask=latent.get("noise_mask"), seed=noise.seed
                )
                break
            except mm.OOM_EXCEPTION:
                if attempt == attempts[-1] or reservation.low:
                    raise
                LOGGER.warning(
                    "Optimize Noise: out of memory with all activations kept; starting again in low memory mode."
                )
            mm.soft_empty_cache()  # outside the handler, whose traceback would keep the activations alive
    if run.state is None:
        raise ValueError("Got a guider that never calls its sampler, expected one such as BasicGuider or CFGGuider.")
    return run.state, run.checkpointed


def sampled_latent(latent: dict, samples: Tensor) -> dict:
    """The LATENT that a sampler returns: new samples, everything else of the input kept."""
    result = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    result["samples"] = samples.to(mm.intermediate_device())
    return result


def _with_reward_models(guider, reward: Reward, reservation: Reservation):
    """A copy of the guider whose model brings the reward's networks along, with attention that has a backward pass."""
    patcher = guider.model_patcher
    if patcher.is_dynamic():
        patcher = patcher.get_non_dynamic_delegate()  # evictable weights cannot be kept for the way back
    patcher = patcher.clone()
    networks = [network for encoder in host_encoders(reward) for network in encoder.patchers]
    patcher.set_additional_models("latent_clip_reward", networks)
    patcher.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, "latent_clip_reservation", reservation
    )
    guider = copy.copy(guider)
    guider.model_patcher = patcher
    guider.model_options = comfy.model_patcher.create_model_options_clone(guider.model_options)
    guider.model_options.setdefault("transformer_options", {})["optimized_attention_override"] = (
        differentiable_attention
    )
    return guider


class _RenoSampler(comfy.samplers.Sampler):
    """Takes the sampler's place: the host has loaded and prepared everything, and this climbs instead of sampling once."""

    def __init__(self, reward: Reward, settings: RenoSettings, reservation: Reservation, live: LiveRun):
        self.reward, self.settings, self.reservation, self.live = reward, settings, reservation, live
        self.state: RenoState | None = None
        self.checkpointed = 0

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model = model_wrap.inner_model
        networks = [network.model for encoder in host_encoders(self.reward) for network in encoder.patchers]
        networks += [patcher.model for patcher in model_wrap.loaded_models]
        memory = checkpointed_blocks(model.diffusion_model) if self.reservation.low else nullcontext(0)
        with gradients([model, *networks]), memory as self.checkpointed:
            sigmas, noise, latent_image = ordinary(sigmas), ordinary(noise), ordinary(latent_image)
            denoise_mask = None if denoise_mask is None else ordinary(denoise_mask)
            conds, model_wrap.conds = model_wrap.conds, map_conds(model_wrap.conds, ordinary)
            try:
                max_denoise = self.max_denoise(model_wrap, sigmas)
                generate = _generator(model_wrap, sigmas, extra_args, latent_image, denoise_mask, max_denoise)
                on_step = _progress(model_wrap.model_patcher, self.settings.iterations, self.live)
                self.state = optimize_noise(generate, self.reward, noise, self.settings, on_step)
            finally:
                model_wrap.conds = conds
        return model.process_latent_in(self.state.latents)


def _generator(
    model_wrap, sigmas: Tensor, extra_args: dict, latent_image: Tensor, denoise_mask: Tensor | None, max_denoise: bool
):
    """noise (b, C, H, W), batch indices → raw latents, through the host's own denoiser with inpainting and cfg."""
    model, conds, size = model_wrap.inner_model, model_wrap.conds, len(latent_image)
    # a control net keeps its own per-item state, so with one the finished items are carried along
    whole_batch = any("control" in entry for entries in conds.values() for entry in entries or [])

    def generate(noise: Tensor, items: list[int]) -> Tensor:
        if whole_batch and len(items) < size:
            return generate(
                noise.new_zeros(size, *noise.shape[1:]).index_copy(0, torch.tensor(items, device=noise.device), noise),
                [*range(size)],
            )[items]
        begin_sampling(extra_args["model_options"])  # what guidance remembers is of the noise before
        model_wrap.conds = conds if len(items) == size else cond_items(conds, items, size)
        image = latent_image[items]
        mask = None if denoise_mask is None else denoise_mask[items]
        denoiser = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        denoiser.latent_image, denoiser.noise = image, noise
        x = model.model_sampling.noise_scaling(sigmas[0], noise, image, max_denoise)
        x = euler(lambda x, sigma: denoiser(x, sigma, denoise_mask=mask, **extra_args), x, sigmas)
        x = model.model_sampling.inverse_noise_scaling(sigmas[-1], x)
        return model.process_latent_out(x.float())

    return generate


def _progress(patcher, iterations: int, live: LiveRun):
    """Progress bar, live preview of the best latent so far, curves on the node, and the two ways to end a run."""
    callback = latent_preview.prepare_callback(patcher, iterations)

    def on_step(state: RenoState) -> bool:
        mm.throw_exception_if_processing_interrupted()
        with torch.no_grad():
            best = patcher.model.process_latent_in(state.latents[state.rewards.argmax()].unsqueeze(0))
            callback(state.iterations[-1].index, best, best, iterations)
            return live.step(state)

    return on_step
