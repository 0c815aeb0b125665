"""Workflows of Shapes World in API form, with the titles that `latent-clip evaluate` expects: one per method."""

from __future__ import annotations

from collections.abc import Callable


def node(kind: str, title: str = "", **inputs) -> dict:
    """One node of an API prompt."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title or kind}}


def _world() -> dict:
    return {
        "world": node("LatentCLIPShapesWorld"),
        "text": node("PrimitiveStringMultiline", "prompt", value=""),
        "positive": node("CLIPTextEncode", clip=["world", 1], text=["text", 0]),
        "negative": node("CLIPTextEncode", "negative", clip=["world", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "reward": node("LatentCLIPTextReward", latent_clip=["world", 3], text=["text", 0], weight=1.0, fit="tiles"),
    }


def _shown(latent: list) -> dict:
    return {
        "decode": node("VAEDecode", samples=latent, vae=["world", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="evaluate"),
    }


def _sampled(steps: int, cfg: float) -> dict:
    return {
        "sample": node(
            "KSampler", "seed", model=["world", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["empty", 0], seed=0, steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple", denoise=1.0,
        )
    }  # fmt: skip


def plain(steps: int = 1, cfg: float = 1.0) -> dict:
    """One image from one noise, scored but not chosen. Slots: prompt, seed, batch, negative, cfg where there is more than one step."""
    graph = {**_world(), **_sampled(steps, cfg), **_shown(["score", 0])}
    graph["score"] = node("LatentCLIPScore", latent=["sample", 0], reward=["reward", 0])
    graph["empty"]["_meta"]["title"] = "batch"
    return graph


def best_of(count: int, steps: int = 1, cfg: float = 1.0) -> dict:
    """The best of a batch, as Latent-CLIP says."""
    graph = {**_world(), **_sampled(steps, cfg), **_shown(["best", 0])}
    graph["empty"]["inputs"]["batch_size"] = count
    graph["best"] = node(
        "LatentCLIPSelect", latent=["sample", 0], reward=["reward", 0], keep=1, use_threshold=False, threshold=0.0
    )
    return graph


def reno(iterations: int) -> dict:
    """One step from a noise that was optimised for the reward."""
    return {
        **_world(),
        "noise": node("RandomNoise", "seed", noise_seed=0),
        "guider": node("CFGGuider", model=["world", 0], positive=["positive", 0], negative=["negative", 0], cfg=1.0),
        "sigmas": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=1, denoise=1.0),
        "best": node(
            "LatentCLIPOptimizeNoise", noise=["noise", 0], guider=["guider", 0], sigmas=["sigmas", 0], latent_image=["empty", 0],
            reward=["reward", 0], iterations=iterations, learning_rate=5.0, optimizer="nesterov", gradient_clip=0.1,
            prior_weight=0.01, patience=0, memory="auto",
        ),
        **_shown(["best", 0]),
    }  # fmt: skip


def search(candidates: int, steps: int, cfg: float) -> dict:
    """The best of a search in as many steps: drafts of all candidates, one of them in full, for half of what all would cost."""
    return {
        **_world(),
        "noise": node("RandomNoise", "seed", noise_seed=0),
        "guider": node("CFGGuider", model=["world", 0], positive=["positive", 0], negative=["negative", 0], cfg=cfg),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["world", 0], scheduler="simple", steps=steps, denoise=1.0),
        "best": node(
            "LatentCLIPSearch", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0], sigmas=["sigmas", 0],
            latent_image=["empty", 0], reward=["reward", 0], candidates=candidates, keep=1, look="drafts", budget=0.5, variety=0.0,
            chooses="reward", time_out=1.0, cuts="", draft_steps=0, draft_scheduler="simple", images_at_once=0,
        ),
        **_shown(["best", 0]),
    }  # fmt: skip


def guided(strength: float, steps: int, cfg: float) -> dict:
    """Sample like `plain`, with every step corrected up the reward."""
    graph = plain(steps, cfg)
    graph["guide"] = node(
        "LatentCLIPGuideModel", model=["world", 0], reward=["reward", 0], strength=strength, start=0.0, end=1.0, every_n=1, momentum=0.0
    )
    graph["sample"]["inputs"]["model"] = ["guide", 0]
    return graph


def noised(share: float = 0.66, steps: int = 6, cfg: float = 3.0) -> dict:
    """A picture that is given, with noise on it and denoised with a prompt. Slots: picture, prompt, seed."""
    graph = {**_world(), **_sampled(steps, cfg), **_shown(["sample", 0])}
    graph["load"] = node("LoadImage", "picture", image="")
    graph["encode"] = node("VAEEncode", pixels=["load", 0], vae=["world", 2])
    graph["sample"]["inputs"] |= {"denoise": share, "latent_image": ["encode", 0]}
    del graph["empty"]
    return graph


STEPS, CFG = 12, 3.0
ARMS: dict[str, Callable[[], dict]] = {
    "plain": plain,
    "best-of-8": lambda: best_of(8),
    "reno": lambda: reno(5),
    f"plain-{STEPS}": lambda: plain(STEPS, CFG),  # what search and guidance, which need steps, are to be compared with
    "search": lambda: search(8, STEPS, CFG),
    "guided": lambda: guided(0.2, STEPS, CFG),
}
