"""Score and select: the consumers that a batch of latents meets first."""

import json

from comfy_api.latest import io

from .sockets import CATEGORY, LATENT_REWARD, SHOWS


def reward_input() -> io.Custom:
    """What a consumer judges by."""
    return LATENT_REWARD.Input(
        "reward", tooltip="What to judge by: any Reward node, or several through Combine Rewards."
    )


def variety_input(**more) -> io.Float.Input:
    """How much a group's differences count beside its scores."""
    return io.Float.Input(
        "variety",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.05,
        tooltip="How much the kept ones are to differ. 0: only the score counts. 0.5 parts images that are nearly alike; 1 weighs "
        "difference as much as the score; far more keeps odd ones.",
        **more,
    )


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
    def execute(cls, latent, reward):
        from ..host.reports import score_report

        report = score_report(latent, reward)
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
                io.Int.Input("keep", default=1, min=1, max=4096, tooltip="How many to keep at most, the best first."),
                io.Boolean.Input(
                    "use_threshold",
                    default=False,
                    tooltip="Also demand a minimum score; then there may be fewer, or none.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.2,
                    min=-1000.0,
                    max=1000.0,
                    step=0.001,
                    tooltip="The minimum score, if use_threshold is on. Look at Score Latents for the usual range of your reward.",
                ),
                variety_input(optional=True),
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
        )

    @classmethod
    def execute(cls, latent, reward, keep, use_threshold, threshold, variety=0.0):
        from ..host.latents import items_or_blocker, values_or_blocker
        from ..host.reports import score_report
        from ..methods.select import keep_best

        report = score_report(latent, reward, with_features=variety > 0)
        best, rest = keep_best(report.scores, keep, threshold if use_threshold else None, report.features, variety)
        return io.NodeOutput(
            items_or_blocker(latent, best),
            items_or_blocker(latent, rest),
            values_or_blocker(best),
            values_or_blocker(report.scores[best].tolist()),
            ui={"latent_clip": [report.as_ui(kept=best)]},
        )
