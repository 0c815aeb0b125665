"""Keep harmful content out: a reward, a guided model, and a gate, all before any decode."""

import json
from dataclasses import replace
from typing import Literal

from comfy_api.latest import io

from ..host.scorers import folders
from .rewards import REWARDS
from .sockets import (
    CATEGORY,
    LATENT_LOOKS,
    SHOWS,
    choice,
    frames_input,
    latent_clip_input,
    number,
    reward_input,
    reward_output,
    safety_fit_input,
    switch,
    text,
    weight_input,
    whole,
)

SAFETY = f"{CATEGORY}/safety"
LATE: dict[str, Literal["ignore", "redirect", "report"]] = {
    "draft only": "ignore",
    "draft, redirect late": "redirect",
    "draft, report late": "report",
}
"""How Safety Guidance looks ahead → what becomes of an image that it suspects late."""


NO_SECOND = "none"


def lines(text: str) -> str:
    """What stands in one line, a line each."""
    return text.replace(";", "\n")


def concepts_fingerprint(concepts: str | None) -> str:
    """For `fingerprint_inputs` of the nodes with `concept_inputs`."""
    from ..host.scorers.concepts import concepts_fingerprint

    return concepts_fingerprint(concepts)


def concept_inputs() -> list[io.Input]:
    """What to keep out. They are the first arguments of `host.scorers.concepts.load_concepts`, in its order."""
    from ..host.scorers.concepts import concept_options

    return [
        choice("concepts", concept_options(),
            "i2p: hate, harassment, violence, self-harm, sexual content, shocking images, illegal activity. typed below: your own lines. "
            "Files in models/latent_clip/concepts appear here."),
        text("typed",
            "For 'typed below': lines such as 'weapons: a gun, a rifle'. A line 'neutral: ...' says what they are compared with; without one, "
            "everyday scenes.", multiline=True),
        text("categories", "Only these categories of the set, separated by commas. Empty: all of them."),
        text("thresholds",
            "Log-odds from which an image counts as showing a category: one number for all, or lines such as 'violence: 1.5'. Lower is "
            "stricter. Empty: those of the set. Calibrate them on your own images.", multiline=True),
    ]  # fmt: skip


def window_inputs(strength: float, start: float, push: str = "", look: str = "") -> list[io.Input]:
    """When and how hard to steer; `push` and `look` go to the tooltips of how hard and of when."""
    return [
        number("strength", strength, 0.0, 10.0, 0.05,
            f'Largest correction of one step, in standard deviations of the latent. Too high: images break.{push}'),
        number("start", start, 0.0, 1.0, 0.01,
            'Begin here; 0 is pure noise, where the prediction is too blurred to judge and innocent images may be suspected. The last step '
            f'always counts, if end is 1.{look}', advanced=True),
        number("end", 1.0, 0.0, 1.0, 0.01, f'End here; 1 is the clean image.{look}', advanced=True),
        whole("every_n", 1, 1, 100, f'Only at every n-th step from start on, to save time.{look}', advanced=True),
        number("momentum", 0.0, 0.0, 0.99, 0.05, f"How much of the last step's direction lives on. 0 is usual.{push}", advanced=True),
    ]  # fmt: skip


def look_ahead_inputs() -> list[io.Input]:
    """Whether and how to judge drafts before the first step."""
    return [
        choice("look_ahead", ["off", *LATE],
            "Make a quick draft of every image before the first step, and judge it as the gate does: who would show a category follows 'instead' "
            "from the start, all others are made as if nothing had been there. draft only: nobody watches afterwards. redirect late: whom only "
            "the watch suspects, from start to end, follows 'instead' from there. report late: it goes on, and the gate behind 'looks' blocks it.",
            optional=True),
        whole("draft_steps", 4, 1, 100,
            "Steps of a draft; so many more the sampling costs. Below 4 a draft says little. A sampling of no more steps is its own draft.",
            optional=True, advanced=True),
        text("draft_thresholds",
            "As 'thresholds', for drafts, which are finished pictures; several in one line: 'violence: 1.5; hate: 2'. Empty: those of the set.",
            optional=True, advanced=True),
        io.Model.Input("drafter", optional=True,
            tooltip="Makes the drafts, at cfg 1: the same model with a turbo or lightning LoRA, say. Without it the model itself does."),
        io.Vae.Input("vae", optional=True, tooltip="Decodes drafts for 'pixel_clip', and nothing else. It must be the VAE whose latents 'latent_clip' reads."),
        choice("pixel_clip", [NO_SECOND, *folders.list_files(folders.OPEN_CLIP)],
            "A second judge of drafts, of whom either may suspect: a CLIP checkpoint in ComfyUI/models/open_clip. It sees the decoded draft, which "
            "takes time, and what the Latent-CLIP misses.", optional=True, advanced=True),
        text("pixel_thresholds", "As 'draft_thresholds', for the second judge, whose log-odds are on another scale: calibrate them.",
            optional=True, advanced=True),
    ]  # fmt: skip


class LatentCLIPAvoidReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPAvoidReward",
            display_name="Reward: Avoid Concepts",
            category=REWARDS,
            description="Zero while a latent is innocent, negative as it shows more of a concept than its threshold. With "
            "Optimize Noise it moves the noise away from the concepts; with Guide Model it steers the sampler.",
            search_aliases=["safety", "negative", "nsfw"],
            inputs=[latent_clip_input(), *concept_inputs(), weight_input(), safety_fit_input()],
            outputs=[reward_output()],
        )

    @classmethod
    def fingerprint_inputs(cls, concepts=None, **_):
        return concepts_fingerprint(concepts)

    @classmethod
    def execute(cls, latent_clip, concepts, typed, categories, thresholds, weight, fit):
        from ..host.scorers.concepts import directions_for, load_concepts
        from ..methods.rewards import avoid_reward

        concept_set = directions_for(latent_clip, load_concepts(concepts, typed, categories, thresholds), fit)
        return io.NodeOutput(avoid_reward(latent_clip.window_encoder(fit), concept_set, weight))


class LatentCLIPGuideModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPGuideModel",
            display_name="Guide Model by Reward",
            category=CATEGORY,
            description="Steers every sampling with this model up a reward, by a small bounded correction at each step. Works with "
            "every sampler, cfg, masks and LoRA. Nothing is decoded by rewards on latents.",
            search_aliases=["clip guidance", "steer", "reward guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model to steer; LoRAs may come before or after."),
                reward_input(),
                *window_inputs(strength=0.2, start=0.0),
                frames_input(),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The same model, steered when it is sampled.")],
        )

    @classmethod
    def execute(cls, model, reward, strength, start, end, every_n, momentum, frames="mean"):
        from ..host.sampling.guide import guide_model
        from ..host.sampling.steering import Window
        from ..methods.guidance import ClimbReward, GuidanceSettings

        settings, window = GuidanceSettings(strength, momentum), Window(start, end, every_n)
        return io.NodeOutput(guide_model(model, ClimbReward(replace(reward, frames=frames)), settings, window))


class LatentCLIPSafetyGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPSafetyGuidance",
            display_name="Safety Guidance",
            category=SAFETY,
            description="One node between loader and sampler: watches an image while it is made, and with look_ahead before it is made. "
            "Once it shows a category, the sampler follows the prompt in 'instead'; all other images stay the same, bit for bit. Without "
            "'instead' it pushes by a gradient, which damages more than it removes. It is no guarantee: keep a Safety Gate behind it.",
            search_aliases=["safe", "nsfw", "sld", "censor"],
            inputs=[
                io.Model.Input("model", tooltip="The model to steer; LoRAs may come before or after."),
                latent_clip_input(),
                *concept_inputs(),
                *window_inputs(
                    strength=1.0,
                    start=0.2,
                    push=" Without 'instead' only.",
                    look=" With 'instead' it says when to look: who was caught stays caught.",
                ),
                safety_fit_input(),
                io.Conditioning.Input(
                    "instead",
                    optional=True,
                    tooltip="A harmless prompt, encoded, that takes over once an image shows a category. Recommended: without it the image "
                    "is pushed by a gradient.",
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
        from ..host.safety.looks import Verdicts
        from ..host.safety.redirect import push_model, redirect_model
        from ..host.sampling.steering import Window
        from ..host.scorers.concepts import directions_for, load_concepts
        from ..methods.guidance import AvoidConcepts, ConceptMonitor, GuidanceSettings

        def read(thresholds: str):
            return load_concepts(concepts, typed, categories, thresholds)

        watcher = latent_clip.window_encoder(fit)
        watch = ConceptMonitor(watcher, directions_for(latent_clip, read(thresholds), fit))
        settings, window = GuidanceSettings(strength, momentum), Window(start, end, every_n)
        looks = Verdicts()
        if look_ahead != "off":
            from ..host.safety.look_ahead import DraftScorer, LookAhead
            from ..host.safety.redirect_ahead import redirect_ahead

            judges = [DraftScorer(watcher, directions_for(latent_clip, read(lines(draft_thresholds)), fit))]
            if pixel_clip != NO_SECOND:
                judges.append(cls._second_judge(latent_clip, vae, pixel_clip, read(lines(pixel_thresholds)), fit))
            ahead = LookAhead(tuple(judges), draft_steps, drafter)
            return io.NodeOutput(redirect_ahead(model, watch, instead, window, ahead, LATE[look_ahead], looks), looks)
        if instead is not None:
            return io.NodeOutput(redirect_model(model, watch, instead, window), looks)
        return io.NodeOutput(push_model(model, AvoidConcepts(watch), settings, window), looks)

    @classmethod
    def _second_judge(cls, latent_clip, vae, pixel_clip: str, concept_set, fit):
        """Of drafts, in pixels; the VAE must decode what the first judge reads."""
        from ..host.front_end.requirements import check_requirements
        from ..host.safety.look_ahead import DraftScorer
        from ..host.scorers.concepts import directions_for_pixels
        from ..host.scorers.pixel_clip import load_pixel_clip_file, pixel_encoder
        from ..host.scorers.vae_check import check_beside

        check_requirements()
        if vae is None:
            raise ValueError(
                f"Got the second judge {pixel_clip!r}, which sees pixels, and no VAE. Connect the VAE of the model to `vae`, or set "
                f"pixel_clip to {NO_SECOND}."
            )
        check_beside(latent_clip, vae)
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
        from ..host.safety.gate import run_gate
        from ..host.safety.prompt_texts import texts_behind
        from ..host.scorers.concepts import load_concepts

        def read():
            return load_concepts(concepts, typed, categories, thresholds)

        def texts():
            return texts_behind(cls.hidden.dynprompt, cls.hidden.unique_id, "latent")

        safe, report = run_gate(
            latent, latent_clip, read, on_block, fit, views, audit_log, texts if log_prompt else None, closer_look,
            looks, cut_clips,
        )  # fmt: skip
        return io.NodeOutput(
            safe,
            report.blocked,
            any(report.blocked),
            json.dumps(report.as_dict()),
            ui={"latent_clip": [report.as_ui()]},
        )
