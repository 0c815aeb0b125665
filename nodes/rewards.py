"""Reward nodes: one number per image, by which other nodes rank, optimise or guide."""

from comfy_api.latest import io

from ..host.scorers import folders
from .sockets import (
    CATEGORY,
    LATENT_REWARD,
    choice,
    dtype_input,
    fit_input,
    latent_clip_input,
    reward_output,
    switch,
    text,
    weight_input,
)

REWARDS = f"{CATEGORY}/rewards"
MAX_COMBINED = 50  # slots of Combine Rewards; the front end shows as many as the schema names


class LatentCLIPTextReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPTextReward",
            display_name="Reward: Match Text",
            category=REWARDS,
            description="How well a latent matches a text: the cosine between their Latent-CLIP features. Nothing is decoded. "
            "Good matches of natural images lie around 0.2 to 0.4; compare scores of one text, not across texts.",
            search_aliases=["clip score", "prompt score", "text similarity"],
            inputs=[
                latent_clip_input(),
                text("text", "What the image should show. Up to 77 tokens are read; weights and other prompt syntax are not used.", multiline=True),
                text("text_to_avoid", "What it should not look like; its cosine is subtracted. Leave empty for none.", multiline=True, optional=True),
                weight_input(),
                fit_input(),
            ],
            outputs=[reward_output()],
        )  # fmt: skip

    @classmethod
    def execute(cls, latent_clip, text, weight, fit, text_to_avoid=""):
        from ..methods.rewards import text_reward

        avoid = latent_clip.encode_text([text_to_avoid])[0] if text_to_avoid.strip() else None
        features = latent_clip.encode_text([text])[0]
        remarks = latent_clip.text.remarks(text)
        remarks += [f"avoided text {remark}" for remark in latent_clip.text.remarks(text_to_avoid)]
        name = term_name("match", text, remarks)
        return io.NodeOutput(text_reward(latent_clip.encoder(fit), name, features, avoid, weight))


class LatentCLIPLatentReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPLatentReward",
            display_name="Reward: Match Latent",
            category=REWARDS,
            description="How much a latent looks like a reference latent: the cosine of their Latent-CLIP features. "
            "Several references are averaged. It compares content and style, not pixels.",
            search_aliases=["image similarity", "reference image"],
            inputs=[
                latent_clip_input(),
                io.Latent.Input(
                    "reference", tooltip="What to look like: a VAE Encode of a picture, or a latent that you liked."
                ),
                weight_input(),
                fit_input(),
            ],
            outputs=[reward_output()],
        )

    @classmethod
    def execute(cls, latent_clip, reference, weight, fit):
        from ..host.scorers.latents import raw_latents_of
        from ..host.scorers.scoring import encode
        from ..methods.features import average_unit
        from ..methods.rewards import latent_reward

        encoder = latent_clip.encoder(fit)
        features = average_unit(encode(encoder, raw_latents_of(reference, latent_clip.space)).unsqueeze(0))[0]
        return io.NodeOutput(latent_reward(encoder, "match: latent", features, weight))


class LatentCLIPPixelReward(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPPixelReward",
            display_name="Reward: Pixel CLIP",
            category=REWARDS,
            description="The usual way, for models without a Latent-CLIP and for preference models: decode the latent with the VAE, any "
            "that ComfyUI decodes with, then judge the pixels with a CLIP (OpenCLIP, OpenAI, SigLIP, HPSv2.1, PickScore). Far slower than a "
            "latent reward.",
            search_aliases=["clip score", "hps", "pickscore", "aesthetic"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE that decodes these latents: of SD, SDXL, Flux, Qwen-Image, Wan, a TAESD, any."),
                choice("file", folders.list_files(folders.OPEN_CLIP),
                    "A CLIP or SigLIP with both towers in ComfyUI/models/open_clip: open_clip's layout, that of transformers, or OpenAI's own file."),
                text("text", "What the image should show. As many tokens are read as the file allows, 77 for a CLIP, 64 for most SigLIPs; weights and other "
                    "prompt syntax are not used.", multiline=True),
                weight_input(),
                dtype_input(),
                switch("quick_gelu", "Switch on for OpenAI's original weights in open_clip's layout, which use another activation and cannot tell. OpenAI's own file "
                    "and a config.json beside the file can.", advanced=True),
            ],
            outputs=[reward_output()],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file=None, **_):
        return folders.fingerprint(folders.OPEN_CLIP, file)

    @classmethod
    def execute(cls, vae, file, text, weight, dtype, quick_gelu):
        from ..host.front_end.requirements import check_requirements

        check_requirements()
        from ..host.scorers.pixel_clip import load_pixel_clip_file, pixel_reward

        clip = load_pixel_clip_file(file, dtype, quick_gelu)
        kind = "pixels match" if clip.logit_bias is None else "pixels match, log-odds"
        return io.NodeOutput(pixel_reward(clip, vae, term_name(kind, text, clip.text.remarks(text)), text, weight))


class LatentCLIPCombineRewards(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        template = io.Autogrow.TemplatePrefix(
            LATENT_REWARD.Input("reward", tooltip="A reward; another slot appears when this one is connected."),
            prefix="reward_",
            min=1,
            max=MAX_COMBINED,
        )
        return io.Schema(
            node_id="LatentCLIPCombineRewards",
            display_name="Combine Rewards",
            category=REWARDS,
            description=f"The sum of up to {MAX_COMBINED} rewards, each with the weight set on its own node. For more, combine the sums. "
            "Rewards on one Latent-CLIP share its forward pass, so more texts cost almost nothing.",
            search_aliases=["sum rewards", "weighted reward", "ensemble"],
            inputs=[io.Autogrow.Input("rewards", template=template)],
            outputs=[reward_output()],
        )

    @classmethod
    def execute(cls, rewards, **surplus):
        """`surplus`: inputs that the schema has no slot for, which the host hands over by their full name."""
        from ..methods.rewards import combine

        if surplus:
            raise ValueError(
                f"Got {len(rewards) + len(surplus)} rewards ({', '.join(sorted(surplus)[:3])} …), expected at most {MAX_COMBINED}. Combine them "
                "in groups, and the sums with another Combine Rewards: sums of sums are the same."
            )
        return io.NodeOutput(combine([reward for reward in rewards.values() if reward is not None]))


def term_name(kind: str, text: str, remarks: list[str]) -> str:
    """Name of a text reward in reports and curves; remarks on the part that is not read come first, where they are seen."""
    aside = f" ({', '.join(remarks)})" if remarks else ""
    return f"{kind}{aside}: {shorten(text)}"


def shorten(text: str, length: int = 60) -> str:
    """One line of at most `length` characters, for names in reports."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
