"""Overhead of Search Best Images beside its model evaluations: whole searches against stock samplings of the same evaluations,
and the memory of many candidates.

Shapes World's model is tiny, so the rounds, the pictures and the bookkeeping weigh most at its own size, and less the larger the latents.
"""

import time

import torch

from .reno_memory import Alive
from .timing import alternate, device_name, use_cpu_host

CANDIDATES, KEEP, STEPS, CFG = 8, 2, 20, 3.0
SIDES = (8, 32)  # of the latents: pictures of 64 and 256 pixels


def run(rounds: int = 7) -> dict:
    """Seconds of both, and their ratio."""
    use_cpu_host()
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    torch.set_num_threads(1)
    result: dict = {
        "device": device_name(),
        "what": f"Shapes World, {CANDIDATES} candidates, keep {KEEP}, {STEPS} steps of euler, cfg {CFG}, text reward, one thread",
        "rounds": rounds,
    }
    with torch.inference_mode():
        for side in SIDES:
            for look in ("drafts", "cuts"):
                result[f"{8 * side} px, {look}"] = _measure(side, look, rounds)
        result["megabytes alive"] = _peaks()
    return result


def _world() -> tuple:
    """(guider with a prompt and its negative, reward on the prompt)."""
    import comfy.samplers

    from ..host.scorers import shapes_world
    from ..methods.rewards import text_reward

    model, text = shapes_world.load_generator()
    clip = shapes_world.load_latent_clip()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*([[text.encode_from_tokens(text.tokenize(p)), {}]] for p in ("a red circle", "")))
    guider.set_cfg(CFG)
    return guider, text_reward(clip.encoder(), "text", clip.encode_text(["a red circle"])[0])


def _peaks(side: int = 32, steps: int = 8) -> dict:
    """Most megabytes alive at a time, in a plain batch and in a search with two images at once."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from ..host.search.run import run_search
    from ..host.search.state import SearchSettings

    guider, reward = _world()
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    euler, noise, one = comfy.samplers.sampler_object("euler"), Noise_RandomNoise(1), torch.zeros(1, 4, side, side)

    def plain(size: int) -> None:
        samples = one.repeat(size, 1, 1, 1)
        guider.sample(noise.generate_noise({"samples": samples}), samples, euler, sigmas, seed=1, disable_pbar=True)

    def search(size: int) -> None:
        run_search(noise, guider, euler, sigmas, {"samples": one}, reward, SearchSettings(size, KEEP, images_at_once=2))

    peaks: dict = {"what": f"pictures of {8 * side} pixels, {steps} steps, two images at once in the search"}
    for name, run in (("plain batch", plain), ("search", search)):
        for size in (8, 64):
            with Alive() as alive:
                run(size)
            peaks[f"{name} of {size}"] = round(alive.peak / 2**20, 1)
    return peaks


def _measure(side: int, look: str, rounds: int) -> dict:
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from ..host.sampling.drafts import draft_sigmas
    from ..host.search.run import run_search
    from ..host.search.state import SearchSettings

    guider, reward = _world()
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    euler, noise = comfy.samplers.sampler_object("euler"), Noise_RandomNoise(1)
    latent = {"samples": torch.zeros(1, 4, side, side)}
    settings = SearchSettings(CANDIDATES, KEEP, look=look)
    found: dict = {}

    def search() -> None:
        found.update(run_search(noise, guider, euler, sigmas, latent, reward, settings).report)

    def plain(size: int, levels: torch.Tensor) -> None:
        samples = latent["samples"].repeat(size, 1, 1, 1)
        start = noise.generate_noise({"samples": samples})
        guider.sample(start, samples, euler, levels, seed=1, disable_pbar=True)

    def same_evaluations() -> None:
        if look == "drafts":
            plain(CANDIDATES, draft_sigmas(sampling, "simple", found["draft_steps"], float(sigmas[0])))
            plain(KEEP, sigmas)
            return
        first = 0  # as many rows as were alive, in each part of the schedule
        for one in found["rounds"]:
            plain(len(one["alive"]), sigmas[first : one["step"] + 1])
            first = one["step"]

    search()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = alternate({"search": search, "the same evaluations": same_evaluations}, rounds, 1.0, clock)
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "evaluations": found["cost_spent"],
        "of_a_whole_batch": round(found["cost_spent"] / found["cost_plain"], 3),
        "search_over_the_same_evaluations": round(seconds["search"] / seconds["the same evaluations"], 4),
    }
