"""Zero-shot classification of latents."""

import json

from comfy_api.latest import io

from .sockets import CATEGORY, SHOWS, fit_input, latent_clip_input, text


class LatentCLIPClassify(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPClassify",
            display_name="Classify Latents",
            category=CATEGORY,
            description="Which of your labels fits each latent best, without a decode. The latents of one label can go another way than the rest.",
            search_aliases=["zero-shot", "tag", "route", "label"],
            inputs=[
                io.Latent.Input("latent", tooltip="The latents to classify."),
                latent_clip_input(),
                text("labels", "One label per line, at least two. The label that fits best wins.", multiline=True, default='a photo\na drawing'),
                text("templates",
                    "One sentence per line with {} where the label goes, such as 'a photo of {}'. Several are averaged, as CLIP does.", multiline=True, default='{}'),
                text("route", "A label: latents of it leave by 'matched', all others by 'rest'. Empty: the first label."),
                fit_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="The best label of every latent, in batch order.",
                ),
                io.Float.Output(
                    display_name="probabilities",
                    is_output_list=True,
                    tooltip="The probability of that label among those given.",
                ),
                io.String.Output(
                    display_name="report", tooltip="JSON: the probability of every label for every latent."
                ),
                io.Latent.Output(
                    display_name="matched",
                    tooltip="Latents whose best label is the routed one. What follows does not run if there are none.",
                ),
                io.Latent.Output(
                    display_name="rest", tooltip="All other latents. What follows does not run if there are none."
                ),
            ],
            **SHOWS,
        )  # fmt: skip

    @classmethod
    def execute(cls, latent, latent_clip, labels, templates, route, fit):
        from ..host.scorers.latents import items_or_blocker
        from ..host.scorers.reports import classify_report

        names, routed = lines(labels), route.strip()
        if routed and routed not in names:
            raise ValueError(f"Got the route {routed!r}, expected one of the labels: {', '.join(names)}.")
        report = classify_report(latent, latent_clip, names, lines(templates), fit)
        matched = [i for i, label in enumerate(report.labels) if label == (routed or names[0])]
        rest = [i for i in range(len(report.labels)) if i not in matched]
        return io.NodeOutput(
            report.labels,
            report.probabilities,
            json.dumps(report.as_dict()),
            items_or_blocker(latent, matched),
            items_or_blocker(latent, rest),
            ui={"latent_clip": [report.as_ui()]},
        )


def lines(text: str) -> list[str]:
    """The non-empty lines of a text, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]
