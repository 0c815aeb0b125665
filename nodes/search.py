"""Search: draw many candidates, score them early, keep the best and drop the rest; as an ordinary sampler node."""

import json

from comfy_api.latest import io

from .sockets import CATEGORY, SHOWS, choice, number, reward_input, text, variety_input, whole


class LatentCLIPSearch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        import comfy.samplers

        return io.Schema(
            node_id="LatentCLIPSearch",
            display_name="Search Best Images",
            category=CATEGORY,
            description="Samples like SamplerCustomAdvanced, but many candidates at once: it looks at them early, keeps the best and does not "
            "pay for the rest. The reward chooses, or you do. For samplings of 8 steps and more. Nothing is decoded by rewards on latents.",
            search_aliases=["best of n", "seeds", "pick", "sampler", "choose", "many seeds"],
            inputs=[
                io.Noise.Input(
                    "noise", tooltip="From RandomNoise: candidate i has the noise of item i of this seed's batch."
                ),
                io.Guider.Input("guider", tooltip="Model and conditioning, from BasicGuider or CFGGuider."),
                io.Sampler.Input(
                    "sampler",
                    tooltip="Any sampler but dpm_adaptive. With drafts, one without noise of its own: not lcm, ancestral or SDE; the help lists them.",
                ),
                io.Sigmas.Input("sigmas", tooltip="The whole schedule, as for one image."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="One latent, empty or to change, which every candidate starts from. A batch of several is taken as the candidates.",
                ),
                reward_input(),
                whole("candidates", 8, 2, 256, "How many to draw. 8 to 16 is usual. Not used where latent_image is a batch of its own."),
                whole("keep", 2, 1, 255, "How many to sample to the end, the best first."),
                choice("look", ["drafts", "cuts", "both"],
                    "drafts: every candidate is finished in a few steps, and the best ones are sampled in full from the same noise. cuts: one "
                    "sampling, which drops candidates on its way by what it predicts. both: drafts, then one cut."),
                number("budget", 0.5, 0.05, 0.95, 0.05,
                    "Share of what all candidates would cost in full. It decides the steps of the drafts and where to cut. 0.4 to 0.6 is "
                    "usual; where so little pays for no look of use, more is spent."),
                variety_input(),
                choice("chooses", ["reward", "me", "reward proposes, I confirm"],
                    "me: the node shows the candidates and waits for your choice. Only the page that queued it is asked; runs that nobody "
                    "watches never wait."),
                number("time_out", 300.0, 0.0, 86400.0, 10.0, "Seconds after which the reward chooses for you. 0 waits until you do."),
                text("cuts",
                    "Cuts of your own, such as: 20% → 6, 40% → 3 (after a fifth of the steps keep 6). Empty: what the budget pays for. Read "
                    "where look is cuts or both.", advanced=True),
                whole("draft_steps", 0, 0, 100,
                    "Steps of a draft. 0: what the budget pays for, at least 3. Read where look is drafts or both.", advanced=True),
                io.Combo.Input(
                    "draft_scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="simple",
                    tooltip="Schedule of the drafts, whose sampler is euler. In few steps simple tells more than normal.",
                    advanced=True,
                ),
                whole("images_at_once", 0, 0, 256, "How many images the model works on together. 0: as many as fit into free memory.", advanced=True),
                io.Model.Input(
                    "drafter",
                    optional=True,
                    tooltip="Another model of the same VAE to make the drafts with, at cfg 1, such as the same model with a turbo LoRA.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The winners, from best to worst."),
                io.Latent.Output(
                    display_name="rest",
                    tooltip="The others as far as they got: drafts, or the prediction they were dropped with.",
                ),
                io.Noise.Output(
                    display_name="noise", tooltip="The winners' noise, for Optimize Noise or another sampler."
                ),
                io.String.Output(
                    display_name="trace", tooltip="JSON: every look, its scores, who was kept, and the cost."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **SHOWS,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, chooses="reward", **inputs):
        """Client whose choice the cached result is, and how often the reward had to choose in a person's place."""
        from ..host.front_end.routes import STOPS, host_server

        if chooses == "reward":
            return ""
        return f"{getattr(host_server(), 'client_id', None)} {STOPS[cls.hidden.unique_id]}"

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, reward, drafter=None, **widgets):
        from ..host.search.run import SearchSettings, run_search

        found = run_search(noise, guider, sampler, sigmas, latent_image, reward, SearchSettings(**widgets), drafter)
        trace = {key: value for key, value in found.report.items() if key != "thumbnails"}
        return io.NodeOutput(found.best, found.rest, found.noise, json.dumps(trace), ui={"latent_clip": [found.report]})
