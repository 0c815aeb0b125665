"""Optimise the starting noise by a reward: ReNO as an ordinary sampler node."""

import json

from comfy_api.latest import io

from .sockets import CATEGORY, LATENT_REWARD, SHOWS, choice, number, reward_input, switch, whole


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
                whole("iterations", 20, 1, 1000, "Evaluations of the model. 20 gives most of the gain, 50 is the paper's. 1 only samples."),
                number("learning_rate", 5.0, 0.001, 100.0, 0.1,
                    "Step size. 5 for turbo models, 10 for Hyper-SDXL. Too high: colours burn. Too low: nothing changes."),
                choice("optimizer", ["nesterov", "sgd", "adam"],
                    "nesterov is the paper's. adam wants a learning rate of about 0.01 to 0.1.", advanced=True),
                number("gradient_clip", 0.1, 0.001, 100.0, 0.01,
                    "Longest gradient of one image. Together with the learning rate it bounds a step.", advanced=True),
                number("prior_weight", 0.01, 0.0, 10.0, 0.001,
                    "Keeps the noise as long as Gaussian noise is. 0 lets it drift, which ends in burnt images.", advanced=True),
                whole("patience", 0, 0, 1000,
                    "An image is done after this many iterations without a new best and stops costing time. 0: never.", advanced=True),
                choice("memory", ["auto", "fast", "low"],
                    "fast keeps all activations. low computes blocks twice and needs far less memory, for the same result. auto takes low "
                    "where fast cannot fit, and falls back to it when memory runs out.", advanced=True),
                switch("use_target", "End an image as soon as its reward reaches target.", optional=True, advanced=True),
                number("target", 0.3, -1000.0, 1000.0, 0.001,
                    "The reward that is enough, if use_target is on. Look at the curve of an earlier run for its range.", optional=True, advanced=True),
                LATENT_REWARD.Input("watch", optional=True,
                    tooltip="A reward that is only watched, never climbed: its curve shows where the climbed one begins to fool itself. Best one of another "
                    "kind, such as Pixel CLIP. With patience, an image is done when the watch has turned down."),
                switch("watch_keeps",
                    "Keep what the watch likes best, among all that the reward likes no less than the first.", optional=True, advanced=True),
                # on for new nodes only: a prompt without it, as version 0.1 saved it, runs as it did (js/trace.js for its workflows)
                io.Boolean.Input("views", default=True, optional=True,
                    tooltip="Climb the reward of a slightly shifted and noisy view of the latent, another one each time. The reward is much harder to "
                    "fool, so more iterations do less harm. The best is still judged on the latent itself. Off: as in the paper."),
                switch("cuda_graphs",
                    "Record an evaluation and play it back on an NVIDIA or AMD GPU, which saves the time between its kernels. New: tried on an "
                    "emulated GPU only. The seconds in the trace show whether it is faster on yours; it says why where nothing was recorded.",
                    optional=True, advanced=True),
            ],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The best latent of every image."),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="The optimised noise, for another sampler or a multi-step model. Samplers with noise of their own (lcm, ancestral, SDE) lose it "
                    "after the first step.",
                ),
                io.Latent.Output(
                    display_name="first", tooltip="What the noise gave before it was optimised, to compare."
                ),
                io.String.Output(
                    display_name="trace", tooltip="JSON: reward, terms, norms and seconds of every iteration."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            **SHOWS,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        """Number of runs of this node that were stopped early: their cached result is incomplete."""
        from ..host.front_end.routes import STOPS

        return STOPS[cls.hidden.unique_id]

    @classmethod
    def execute(
        cls, noise, guider, sigmas, latent_image, reward, memory,
        use_target=False, target=0.3, watch=None, watch_keeps=False, views=False,
        cuda_graphs=False, **climbing,
    ):  # fmt: skip
        from ..host.reno.run import run_reno, sampled_latent
        from ..host.reno.trace import reno_pictures, reno_trace
        from ..host.sampling.noise import OptimizedNoise
        from ..host.sampling.noise_use import samplers_that_lose_it
        from ..methods.augmentations import Augmentations
        from ..methods.reno import RenoSettings

        settings = RenoSettings(
            **climbing,
            target=target if use_target else None,
            views=Augmentations() if views else None,
            watch_keeps=watch_keeps and watch is not None,
        )
        state, used = run_reno(noise, guider, sigmas, latent_image, reward, settings, memory, watch, cuda_graphs)
        trace = reno_trace(state, reward, settings, used, watch)
        trace["noise_lost_with"] = samplers_that_lose_it(cls.hidden.prompt, cls.hidden.unique_id, len(sigmas) - 1)
        return io.NodeOutput(
            sampled_latent(latent_image, state.latents),
            OptimizedNoise(state.noise.cpu(), noise.seed, latent_image.get("batch_index")),
            sampled_latent(latent_image, state.first_latents),
            json.dumps(trace),
            ui={"latent_clip": [{**trace, **reno_pictures(state, reward.space)}]},
        )
