"""Loader nodes: a Latent-CLIP, or a pixel CLIP with the VAE of a model that has no Latent-CLIP yet."""

from comfy_api.latest import io

from ..host.scorers import folders
from .sockets import CATEGORY, LATENT_CLIP, choice, dtype_input, switch


class LatentCLIPLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPLoader",
            display_name="Load Latent-CLIP",
            category=CATEGORY,
            description="Loads a CLIP that reads latents instead of pixels, from ComfyUI/models/latent_clip. "
            "It reads the latents of one VAE family only: the published weights read SDXL's.",
            search_aliases=["latent clip", "clip score", "reward model"],
            inputs=[
                choice("file", folders.list_files(folders.LATENT_CLIP),
                    "A file in ComfyUI/models/latent_clip: the authors' epoch_34.pt or a converted .safetensors. The README says where to get one."),
                dtype_input(),
                io.Vae.Input("vae", optional=True,
                    tooltip="Wire the VAE that you decode with, to have it checked: a Latent-CLIP reads the latents of one VAE only, and another of "
                    "the same shape gives scores that mean nothing. Nothing else depends on it."),
            ],
            outputs=[LATENT_CLIP.Output(display_name="LATENT_CLIP", tooltip="For Reward, Classify and Safety nodes.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file=None, **_):
        return folders.fingerprint(folders.LATENT_CLIP, file)

    @classmethod
    def execute(cls, file, dtype, vae=None):
        from ..host.front_end.requirements import check_requirements

        check_requirements()
        from ..host.scorers.latent_clip import load_latent_clip_file

        return io.NodeOutput(load_latent_clip_file(file, dtype, vae))


class LatentCLIPPixelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPPixelLoader",
            display_name="Load Pixel Judge",
            category=CATEGORY,
            description="A judge for every model that has a VAE: it decodes, then looks at the picture with a CLIP. Goes wherever a "
            "Latent-CLIP goes. For Z-Image, Flux, Qwen-Image, Wan, SD 1.5, SD 3.5, Flux.2 and others that have no Latent-CLIP yet.",
            search_aliases=["clip", "open_clip", "flux", "z-image", "qwen", "wan", "judge"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model whose latents will be judged."),
                choice("file", folders.list_files(folders.OPEN_CLIP),
                    "A CLIP checkpoint in ComfyUI/models/open_clip, with both towers. The page on models in the docs says where to get one."),
                dtype_input(),
                switch("quick_gelu", "Switch on for OpenAI's original weights, which use another activation. The file cannot tell.", advanced=True),
            ],
            outputs=[LATENT_CLIP.Output(display_name="LATENT_CLIP", tooltip="For Reward, Classify and Safety nodes.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file=None, **_):
        return folders.fingerprint(folders.OPEN_CLIP, file)

    @classmethod
    def execute(cls, vae, file, dtype, quick_gelu):
        from ..host.front_end.requirements import check_requirements

        check_requirements()
        from ..host.scorers.pixel_clip import PixelJudge, load_pixel_clip_file

        return io.NodeOutput(PixelJudge(load_pixel_clip_file(file, dtype, quick_gelu), vae))
