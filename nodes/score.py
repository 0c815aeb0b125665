"""Score and select: the consumers that a batch of latents meets first."""

import json
from dataclasses import replace

from comfy_api.latest import io

from .sockets import CATEGORY, SHOWS, frames_input, number, reward_input, switch, variety_input, whole


class LatentCLIPScore(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPScore",
            display_name="Score Latents",
            category=CATEGORY,
            description="Judges every latent of a batch, without decoding any, and shows the scores on the node. Higher is better.",
            search_aliases=["rate", "clip score", "evaluate", "rank"],
            inputs=[
                io.Latent.Input("latent", tooltip="The latents to judge, straight from a sampler."),
                reward_input(),
                frames_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT", tooltip="The same latents, unchanged."),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One number per latent, in batch order."
                ),
                io.String.Output(display_name="report", tooltip="JSON: every term's value for every latent."),
            ],
            is_output_node=True,  # looking at scores is what it is for; a graph may end in it
        )

    @classmethod
    def execute(cls, latent, reward, frames="mean"):
        from ..host.scorers.reports import score_report

        report = score_report(latent, replace(reward, frames=frames))
        return io.NodeOutput(
            latent, report.scores.tolist(), json.dumps(report.as_dict()), ui={"latent_clip": [report.as_ui()]}
        )


class LatentCLIPSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPSelect",
            display_name="Select Best Latents",
            category=CATEGORY,
            description="Keeps the best latents of a batch, so that only those are decoded. Masks and other per-item data stay with "
            "their items. What follows an output without any item does not run.",
            search_aliases=["best of n", "pick best", "filter batch", "top k"],
            inputs=[
                io.Latent.Input("latent", tooltip="A batch of latents; a batch of 4 to 16 is usual."),
                reward_input(),
                whole("keep", 1, 1, 4096, "How many to keep at most, the best first."),
                switch("use_threshold", "Also demand a minimum score; then there may be fewer, or none."),
                number("threshold", 0.2, -1000.0, 1000.0, 0.001,
                    "The minimum score, if use_threshold is on. Look at Score Latents for the usual range of your reward."),
                variety_input(optional=True),
                frames_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="best", tooltip="The kept latents, from best to worst."),
                io.Latent.Output(display_name="rest", tooltip="The others, from best to worst."),
                io.Int.Output(
                    display_name="indices",
                    is_output_list=True,
                    tooltip="Where the kept ones were in the batch, from 0.",
                ),
                io.Float.Output(display_name="scores", is_output_list=True, tooltip="The scores of the kept ones."),
            ],
            **SHOWS,
        )  # fmt: skip

    @classmethod
    def execute(cls, latent, reward, keep, use_threshold, threshold, variety=0.0, frames="mean"):
        from ..host.scorers.latents import items_or_blocker, values_or_blocker
        from ..host.scorers.reports import score_report
        from ..methods.select import keep_best

        report = score_report(latent, replace(reward, frames=frames), with_features=variety > 0)
        best, rest = keep_best(report.scores, keep, threshold if use_threshold else None, report.features, variety)
        return io.NodeOutput(
            items_or_blocker(latent, best),
            items_or_blocker(latent, rest),
            values_or_blocker(best),
            values_or_blocker(report.scores[best].tolist()),
            ui={"latent_clip": [report.as_ui(kept=best)]},
        )
