"""ReNO inside the host: its guider, memory, previews and interruption around `methods.reno`."""

import copy
import logging
from contextlib import ExitStack
from dataclasses import replace

import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from torch import Tensor

from ...methods.reno import RenoSettings, RenoState, optimize_noise
from ...methods.rewards import Reward
from ...methods.sampling import euler
from ..memory.compiler import compiles
from ..memory.gradients import checkpointed_blocks, differentiable_attention, gradients, ordinary, overwriting_allowed
from ..memory.oom import is_oom
from ..memory.weights import bytes_elsewhere, cast_once
from ..sampling.conditioning import cond_items, map_conds
from ..sampling.patches import patches_of
from ..sampling.reservation import Memory, MemoryUse, Reservation, skips_negative
from ..sampling.steering import begin_sampling
from ..scorers.encoders import networks_of
from ..scorers.latents import check_model_space, latents_for
from .checks import (
    check_hooks,
    check_model,
    check_noise,
    check_one_frame,
    check_repeats,
    check_sigmas,
    gradient_cuts,
    named_failures,
    refuse_cut,
    restart_hooks,
)
from .cuda_graphs import Capture
from .live import LiveRun

LOGGER = logging.getLogger(__name__)


def run_reno(
    noise,
    guider,
    sigmas: Tensor,
    latent: dict,
    reward: Reward,
    settings: RenoSettings,
    memory: Memory,
    validation: Reward | None = None,
    cuda_graphs: bool = False,
) -> tuple[RenoState, MemoryUse]:
    """Optimise the noise that `guider` starts from.

    Args:
        noise, guider, sigmas, latent: as SamplerCustomAdvanced takes them; 1 to 4 steps.
        memory: `fast` keeps all activations, `low` recomputes the blocks in the backward pass, `auto` takes low where
            fast cannot fit, else tries fast and starts again in low after an out-of-memory error.
        validation: see `methods.reno.optimize_noise`.
        cuda_graphs: record the evaluations and play them back where that can be; see `host.reno.cuda_graphs`.

    Returns:
        (state with raw latents, memory use of the run that succeeded).

    Raises:
        ValueError: sigmas without steps, with too many or with noise left; no noise; a model or conditioning that no
            gradient passes through as it was computed. The message names what it is and what to do.
        LatentSpaceError: the model makes latents that the reward cannot read.
    """
    steps = check_sigmas(sigmas)
    check_model(guider.model_patcher)
    check_hooks(getattr(guider, "original_conds", {}), skips_negative(guider), steps)
    for each in (reward, *([] if validation is None else [validation])):
        check_model_space(guider.model_patcher, each.space)
    samples, start = _samples_and_noise(noise, guider.model_patcher, latent)
    attempts: tuple[Memory, ...] = ("auto", "low") if memory == "auto" else (memory,)
    with LiveRun(reward, settings, validation) as live:
        for attempt in attempts:
            reservation = Reservation(attempt, reward, steps, len(samples), guider, validation)
            compiled = compiles(guider.model_patcher.load_device)  # asked here: it is off while gradients are computed
            run = _RenoSampler(reward, settings, reservation, live, validation, cuda_graphs, compiled)
            try:
                guider_with_models = _with_reward_models(guider, networks_of(reward, validation), reservation)
                guider_with_models.sample(
                    start, samples, run, sigmas, denoise_mask=latent.get("noise_mask"), seed=noise.seed
                )
                break
            except (mm.OOM_EXCEPTION, RuntimeError) as error:
                if not is_oom(error) or attempt == attempts[-1] or reservation.low:
                    raise
                LOGGER.warning(
                    "Optimize Noise: out of memory with all activations kept; starting again in low memory mode."
                )
            mm.soft_empty_cache()  # outside the handler, whose traceback would keep the activations alive
    if run.state is None:
        raise ValueError("Got a guider that never calls its sampler, expected one such as BasicGuider or CFGGuider.")
    return run.state, run.memory


def _samples_and_noise(noise, patcher, latent: dict) -> tuple[Tensor, Tensor]:
    """Return the checked latents and their noise, both (B, C, H, W) or (B, C, 1, H, W)."""
    samples = latents_for(patcher, latent)
    check_one_frame(samples)
    if len(samples) == 0:
        raise ValueError("Got an empty batch, expected at least one latent to optimise the noise of.")
    start = noise.generate_noise({**latent, "samples": samples})
    if start.shape != samples.shape:
        raise ValueError(
            f"Got noise of shape {tuple(start.shape)} for a latent of shape {tuple(samples.shape)}, expected one for each image. "
            "Its batch_index names another number of images: take the latent from the node that made the batch."
        )
    check_noise(start)
    return samples, start


def sampled_latent(latent: dict, samples: Tensor) -> dict:
    """Return the LATENT of a sampler: new samples, everything else of the input kept."""
    result = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    result["samples"] = samples.to(mm.intermediate_device())
    return result


def _with_reward_models(guider, networks: list, reservation: Reservation):
    """Copy the guider, with the reward's networks added to its model, and attention that has a backward pass."""
    patcher = guider.model_patcher.clone()
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
    """Sampler that optimises the noise instead of sampling once: the host has loaded and prepared everything."""

    draws_again = True  # so that a draft of its first noise says little of what it makes

    def __init__(
        self,
        reward: Reward,
        settings: RenoSettings,
        reservation: Reservation,
        live: LiveRun,
        validation: Reward | None,
        cuda_graphs: bool,
        compiled: bool,
    ):
        self.reward, self.settings, self.reservation, self.live = reward, settings, reservation, live
        self.validation, self.cuda_graphs, self.compiled = validation, cuda_graphs, compiled
        self.state: RenoState | None = None
        self.memory = MemoryUse()

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model = model_wrap.inner_model
        encoders = [network.model for network in networks_of(self.reward, self.validation)]
        loaded = [patcher.model for patcher in model_wrap.loaded_models]
        with ExitStack() as contexts:
            contexts.enter_context(gradients([model, *encoders, *loaded], model.latent_format))
            contexts.enter_context(overwriting_allowed(model.diffusion_model))
            controls = [network for network in loaded if network not in encoders]
            self._fit_memory(contexts, model, controls, model_wrap.model_patcher)
            sigmas, noise, latent_image = ordinary(sigmas), ordinary(noise), ordinary(latent_image)
            denoise_mask = None if denoise_mask is None else ordinary(denoise_mask)
            # on the device once, where the host would copy what it keeps on the CPU (prompts) at every evaluation
            device = model_wrap.model_patcher.load_device
            conds = model_wrap.conds
            model_wrap.conds = map_conds(conds, lambda tensor: ordinary(tensor).to(device))
            try:
                max_denoise = self.max_denoise(model_wrap, sigmas)
                generate = _generator(model_wrap, sigmas, extra_args, latent_image, denoise_mask, max_denoise)
                patches = patches_of(model_wrap.model_patcher)
                if patches:
                    check_repeats(generate, noise, patches)
                on_step = _progress(model_wrap.model_patcher, self.settings.iterations, self.live)
                generate, reward = _with_checked_gradient(generate, model.diffusion_model), self.reward
                elsewhere = self.memory.offloaded_bytes
                capture = None
                if self.cuda_graphs:
                    capture = Capture(generate, reward, len(noise), device, elsewhere, self.compiled)
                if capture is not None:
                    generate, reward = capture.generate, capture.reward
                with named_failures(patches):
                    self.state = optimize_noise(generate, reward, noise, self.settings, on_step, self.validation)
                if capture is not None:
                    self.memory = replace(self.memory, cuda_graphs=capture.outcome)
            finally:
                model_wrap.conds = conds
        return model.process_latent_in(self.state.latents)

    def _fit_memory(self, contexts: ExitStack, model, controls: list, patcher) -> None:
        """Recompute blocks and cast weights as the reservation decided; log what did not fit."""
        device, blocks = patcher.load_device, 0
        if self.reservation.low:
            networks = [model.diffusion_model, *controls]
            blocks = sum(contexts.enter_context(checkpointed_blocks(network)) for network in networks)
        if self.reservation.resident:
            contexts.enter_context(cast_once(model.diffusion_model, device, model.get_dtype_inference()))
        offloaded = bytes_elsewhere(model.diffusion_model, device)
        if offloaded:
            LOGGER.info(
                "Optimize Noise: %.1f of %.1f GB of the model's weights have no room beside the activations and are copied to "
                "the device for every evaluation, which is slower.",
                offloaded / 1e9,
                patcher.model_size() / 1e9,
            )
        self.memory = MemoryUse(blocks, offloaded)


def _with_checked_gradient(generate, network):
    """Wrap `generate`: its first call refuses a network that loses the gradient."""
    seen = False

    def checking(noise: Tensor, items: list[int]) -> Tensor:
        nonlocal seen
        if seen or not torch.is_grad_enabled():
            return generate(noise, items)
        seen = True
        with gradient_cuts(network) as cuts:
            latents = generate(noise, items)
        refuse_cut(cuts, latents)
        return latents

    return checking


def _generator(
    model_wrap, sigmas: Tensor, extra_args: dict, latent_image: Tensor, denoise_mask: Tensor | None, max_denoise: bool
):
    """Return a function from noise (b, C, H, W) and batch indices to raw latents, by the host's own denoiser."""
    model, conds, size = model_wrap.inner_model, model_wrap.conds, len(latent_image)
    # a control net keeps its own per-item state, so with one the finished items are carried along
    whole_batch = any("control" in entry for entries in conds.values() for entry in entries or [])

    def generate(noise: Tensor, items: list[int]) -> Tensor:
        if whole_batch and len(items) < size:
            return generate(
                noise.new_zeros(size, *noise.shape[1:]).index_copy(0, torch.tensor(items, device=noise.device), noise),
                [*range(size)],
            )[items]
        restart_hooks(conds)
        begin_sampling(extra_args["model_options"])  # what guidance remembers is of the noise before
        model_wrap.conds = conds if len(items) == size else cond_items(conds, items, size)
        image = latent_image[items]
        mask = None if denoise_mask is None else denoise_mask[items]
        denoiser = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        denoiser.latent_image, denoiser.noise = image, noise
        x = model.model_sampling.noise_scaling(sigmas[0], noise, image, max_denoise)
        x = euler(lambda x, sigma: denoiser(x, sigma, denoise_mask=mask, **extra_args), x, sigmas, clean=True)
        x = model.model_sampling.inverse_noise_scaling(sigmas[-1], x)
        return model.process_latent_out(x.float())

    return generate


def _progress(patcher, iterations: int, live: LiveRun):
    """Progress bar, live preview of the best latent so far, curves on the node, and the two ways to end a run."""
    callback = latent_preview.prepare_callback(patcher, iterations)

    def on_step(state: RenoState) -> bool:
        mm.throw_exception_if_processing_interrupted()
        with torch.no_grad():
            best = patcher.model.process_latent_in(state.latents[state.values.argmax()].unsqueeze(0))
            callback(state.iterations[-1].index, best, best, iterations)
            return live.step(state)

    return on_step
