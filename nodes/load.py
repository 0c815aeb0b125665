"""Load Latent-CLIP."""

from comfy_api.latest import io

from ..host import folders
from .sockets import CATEGORY, LATENT_CLIP, choice, dtype_input


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
            ],
            outputs=[LATENT_CLIP.Output(display_name="LATENT_CLIP", tooltip="For Reward, Classify and Safety nodes.")],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, file=None, **_):
        return folders.fingerprint(folders.LATENT_CLIP, file)

    @classmethod
    def execute(cls, file, dtype):
        from ..host.requirements import check_requirements

        check_requirements()
        from ..host.latent_clip import load_latent_clip_file

        return io.NodeOutput(load_latent_clip_file(file, dtype))
