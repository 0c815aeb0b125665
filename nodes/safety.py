"""Safety Guidance and Safety Gate: keep harmful content out before any decode."""

import json

from comfy_api.latest import io

from ..host.scorers import folders
from .safety_inputs import (
    LATE,
    NO_SECOND,
    SAFETY,
    concept_inputs,
    concepts_fingerprint,
    look_ahead_inputs,
    one_per_line,
    window_inputs,
)
from .sockets import LATENT_LOOKS, SHOWS, choice, latent_clip_input, safety_fit_input, switch, whole


class LatentCLIPSafetyGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPSafetyGuidance",
            display_name="Safety Guidance",
            category=SAFETY,
            description="One node between loader and sampler: watches an image while it is made, and with look_ahead before it is made. "
            "Once it shows a category, the sampler follows the prompt in 'instead'; all other images stay the same, bit for bit. Without "
            "'instead' it pushes by a gradient, which is deprecated: it damages more than it removes. It is no guarantee: keep a Safety Gate behind it.",
            search_aliases=["safe", "nsfw", "sld", "censor"],
            inputs=[
                io.Model.Input("model", tooltip="The model to steer; LoRAs may come before or after."),
                latent_clip_input(),
                *concept_inputs(),
                *window_inputs(
                    strength=1.0,
                    start=0.2,
                    push=" Deprecated: only without 'instead'.",
                    look=" With 'instead' it says when to look: who was caught stays caught.",
                ),
                safety_fit_input(),
                io.Conditioning.Input(
                    "instead",
                    optional=True,
                    tooltip="A harmless prompt, encoded, that takes over once an image shows a category. Always connect it: without it the image "
                    "is pushed by a gradient, which is deprecated.",
                ),
                *look_ahead_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model, steered when it is sampled."),
                LATENT_LOOKS.Output(
                    display_name="looks",
                    tooltip="For a Safety Gate behind the sampler: what was seen of each image. With look_ahead only.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, concepts=None, pixel_clip=NO_SECOND, **_):
        second = [] if pixel_clip == NO_SECOND else [folders.fingerprint(folders.OPEN_CLIP, pixel_clip)]
        return [concepts_fingerprint(concepts), *second]

    @classmethod
    def execute(
        cls, model, latent_clip, concepts, typed, categories, thresholds, strength, start, end, every_n, momentum, fit,
        instead=None, look_ahead="off", draft_steps=4, draft_thresholds="", drafter=None, vae=None, pixel_clip=NO_SECOND,
        pixel_thresholds="",
    ):  # fmt: skip
        from ..host.safety.push import push_model
        from ..host.safety.redirect import redirect_model
        from ..host.safety.verdicts import Verdicts
        from ..host.sampling.steering import Window
        from ..host.scorers.concepts import directions_for, load_concepts
        from ..methods.guidance import AvoidConcepts, ConceptMonitor, GuidanceSettings

        def read(thresholds: str):
            return load_concepts(concepts, typed, categories, thresholds)

        encoder = latent_clip.window_encoder(fit)
        monitor = ConceptMonitor(encoder, directions_for(latent_clip, read(thresholds), fit))
        window, verdicts = Window(start, end, every_n), Verdicts()
        if look_ahead != "off":
            from ..host.safety.look_ahead import DraftScorer, LookAhead

            scorers = [DraftScorer(encoder, directions_for(latent_clip, read(one_per_line(draft_thresholds)), fit))]
            if pixel_clip != NO_SECOND:
                scorers.append(cls._second_scorer(latent_clip, vae, pixel_clip, read(one_per_line(pixel_thresholds)), fit))
            draft = LookAhead(tuple(scorers), draft_steps, drafter)
            return io.NodeOutput(redirect_model(model, monitor, instead, window, draft, LATE[look_ahead], verdicts), verdicts)
        if instead is not None:
            return io.NodeOutput(redirect_model(model, monitor, instead, window), verdicts)
        settings = GuidanceSettings(strength, momentum)
        return io.NodeOutput(push_model(model, AvoidConcepts(monitor), settings, window), verdicts)

    @classmethod
    def _second_scorer(cls, latent_clip, vae, pixel_clip: str, concept_set, fit):
        """Load the second scorer of drafts, which reads pixels; the VAE must decode the latents that the first one reads."""
        from ..host.front_end.requirements import check_requirements
        from ..host.safety.look_ahead import DraftScorer
        from ..host.scorers.concepts import directions_for_pixels
        from ..host.scorers.pixel_clip import load_pixel_clip_file, pixel_encoder
        from ..host.scorers.vae_check import check_vae_if_recorded

        check_requirements()
        if vae is None:
            raise ValueError(
                f"Got the second judge {pixel_clip!r}, which sees pixels, and no VAE. Connect the VAE of the model to `vae`, or set "
                f"pixel_clip to {NO_SECOND}."
            )
        check_vae_if_recorded(latent_clip, vae)
        clip = load_pixel_clip_file(pixel_clip)
        return DraftScorer(pixel_encoder(clip, vae), directions_for_pixels(clip, concept_set, fit))


class LatentCLIPSafetyGate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPSafetyGate",
            display_name="Safety Gate",
            category=SAFETY,
            description="Lets a latent pass only if it could be judged and every category is below its threshold. It fails closed: "
            "broken numbers, the wrong latent space, a bad concept set or any error block the image, and the report says why.",
            search_aliases=["safety checker", "nsfw filter", "censor", "moderation"],
            inputs=[
                io.Latent.Input("latent", tooltip="What the sampler made, before any decode."),
                latent_clip_input(),
                *concept_inputs(),
                choice("on_block", ["grey", "blur", "drop", "stop"],
                    "grey: a flat field. blur: only the coarsest colours are left. drop: the image leaves the batch. stop: the prompt ends "
                    "with a message."),
                whole("views", 0, 0, 16,
                    "So many copies with a little noise and shift must pass as well. Costs as much again each. Stops most latents made to "
                    "fool the judge, and more innocent ones too: calibrate with it on.", advanced=True),
                safety_fit_input(),
                switch("audit_log",
                    "Append scores and verdicts to latent_clip/safety.jsonl in ComfyUI's user folder. Never the image.", advanced=True),
                switch("log_prompt",
                    "Also write into that log what was typed into the nodes that the latent comes from, wired texts too. Mind the law where "
                    "you are.", advanced=True),
                switch("closer_look",
                    "Also look at windows in which nothing is reduced: small things in latents larger than the tower. Ten looks instead of "
                    "one at 1024 pixels. Blocks far more innocent images at the same threshold: calibrate with it on.", optional=True, advanced=True),
                LATENT_LOOKS.Input("looks", optional=True,
                    tooltip="From the Safety Guidance of the model that made the images, with its look_ahead on. Blocks what it suspected late, and "
                    "what it did not make; the report then names both looks."),
                switch("cut_clips",
                    "A single clip without sound that begins clean is cut before its first frame that does not pass, instead of blocked. The "
                    "report says where.", optional=True, advanced=True),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="safe", tooltip="What may be decoded. Nothing runs after it if nothing is left."
                ),
                io.Boolean.Output(
                    display_name="blocked", is_output_list=True, tooltip="One per latent that came in, in batch order."
                ),
                io.Boolean.Output(display_name="any_blocked", tooltip="Whether at least one was blocked."),
                io.String.Output(
                    display_name="report", tooltip="JSON: log-odds of every category, verdicts and reasons."
                ),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
            **SHOWS,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, concepts=None, **_):
        return concepts_fingerprint(concepts)

    @classmethod
    def execute(
        cls, latent, latent_clip, concepts, typed, categories, thresholds, on_block, views, fit, audit_log, log_prompt,
        closer_look=False, looks=None, cut_clips=False,
    ):  # fmt: skip
        from ..host.safety.gate import GateSettings, run_gate
        from ..host.safety.prompt_texts import texts_behind
        from ..host.scorers.concepts import load_concepts

        def read():
            return load_concepts(concepts, typed, categories, thresholds)

        def texts():
            return texts_behind(cls.hidden.dynprompt, cls.hidden.unique_id, "latent")

        settings = GateSettings(on_block, fit, views, closer_look, cut_clips, audit_log)
        safe, report = run_gate(latent, latent_clip, read, settings, looks, texts if log_prompt else None)
        return io.NodeOutput(
            safe,
            report.blocked,
            any(report.blocked),
            json.dumps(report.as_dict()),
            ui={"latent_clip": [report.as_ui()]},
        )
