"""Optimise the starting noise by a reward: ReNO as an ordinary sampler node."""

import json

from comfy_api.latest import io

from .score import reward_input
from .sockets import CATEGORY, SHOWS


class LatentCLIPOptimizeNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPOptimizeNoise",
            display_name="Optimize Noise (ReNO)",
            category=CATEGORY,
            description="Samples like SamplerCustomAdvanced, then climbs the reward by gradient steps on the starting noise. "
            "For models of 1 to 4 steps (SDXL-Turbo, Hyper-SDXL). The result is never worse in reward than the first noise. "
            "Nothing is decoded by rewards on latents.",
            search_aliases=["reno", "reward optimization", "sampler", "noise optimization"],
            inputs=[
                io.Noise.Input("noise", tooltip="The noise to start from, from RandomNoise."),
                io.Guider.Input("guider", tooltip="Model and conditioning, from BasicGuider or CFGGuider."),
                io.Sigmas.Input("sigmas", tooltip="1 to 4 steps. One step is the fastest and what ReNO was made for."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent, or one to change with fewer sigmas. Masks are kept."
                ),
                reward_input(),
                io.Int.Input(
                    "iterations",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Evaluations of the model. 20 gives most of the gain, 50 is the paper's. 1 only samples.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5.0,
                    min=0.001,
                    max=100.0,
                    step=0.1,
                    tooltip="Step size. 5 for turbo models, 10 for Hyper-SDXL. Too high: colours burn. Too low: nothing changes.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=["nesterov", "sgd", "adam"],
                    default="nesterov",
                    tooltip="nesterov is the paper's. adam wants a learning rate of about 0.01 to 0.1.",
                    advanced=True,
                ),
                io.Float.Input(
                    "gradient_clip",
                    default=0.1,
                    min=0.001,
                    max=100.0,
                    step=0.01,
                    tooltip="Longest gradient of one image. Together with the learning rate it bounds a step.",
                    advanced=True,
                ),
                io.Float.Input(
                    "prior_weight",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="Keeps the noise as long as Gaussian noise is. 0 lets it drift, which ends in burnt images.",
                    advanced=True,
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="An image is done after this many iterations without a new best and stops costing time. 0: never.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "memory",
                    options=["auto", "fast", "low"],
                    default="auto",
                    tooltip="fast keeps all activations. low computes blocks twice and needs far less memory, for the same "
                    "result. auto takes low where fast cannot fit, and falls back to it when memory runs out.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "use_target",
                    default=False,
                    optional=True,
                    tooltip="End an image as soon as its reward reaches target.",
                    advanced=True,
                ),
                io.Float.Input(
                    "target",
                    default=0.3,
                    min=-1000.0,
                    max=1000.0,
                    step=0.001,
                    optional=True,
                    tooltip="The reward that is enough, if use_target is on. Look at the curve of an earlier run for its range.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The best latent of every image."),
                io.Noise.Output(
                    display_name="noise", tooltip="The optimised noise, for another sampler or a multi-step model."
                ),
                io.Latent.Output(
                    display_name="first", tooltip="What the noise gave before it was optimised, to compare."
                ),
                io.String.Output(
                    display_name="trace", tooltip="JSON: reward, terms, norms and seconds of every iteration."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **SHOWS,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        """How many runs of this node were stopped early: what such a run left in the host's cache is not its result."""
        from ..host.routes import STOPS

        return STOPS[cls.hidden.unique_id]

    @classmethod
    def execute(
        cls,
        noise,
        guider,
        sigmas,
        latent_image,
        reward,
        iterations,
        learning_rate,
        optimizer,
        gradient_clip,
        prior_weight,
        patience,
        memory,
        use_target=False,
        target=0.3,
    ):
        from ..host.noise import OptimizedNoise
        from ..host.reno import run_reno, sampled_latent
        from ..host.reports import reno_pictures, reno_trace
        from ..methods.reno import RenoSettings

        settings = RenoSettings(
            iterations, learning_rate, optimizer, gradient_clip, prior_weight, patience, target if use_target else None
        )
        state, used = run_reno(noise, guider, sigmas, latent_image, reward, settings, memory)
        trace = reno_trace(state, reward, settings, used)
        return io.NodeOutput(
            sampled_latent(latent_image, state.latents),
            OptimizedNoise(state.noise.cpu(), noise.seed, latent_image.get("batch_index")),
            sampled_latent(latent_image, state.first_latents),
            json.dumps(trace),
            ui={"latent_clip": [{**trace, **reno_pictures(state, reward.space)}]},
        )
