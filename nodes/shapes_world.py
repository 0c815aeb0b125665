"""Load the demo world that ships with the pack."""

from comfy_api.latest import io

from .sockets import CATEGORY, LATENT_CLIP, switch


class LatentCLIPShapesWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LatentCLIPShapesWorld",
            display_name="Load Shapes World (demo)",
            category=f"{CATEGORY}/demo",
            description=(
                "A tiny world that ships with this pack: 64×64 pictures of coloured shapes, with a one-step generator, a VAE and a "
                "Latent-CLIP. Nothing is downloaded and no GPU is needed. It shows how the nodes work, not how good real models look."
            ),
            search_aliases=["demo", "example", "toy", "tiny model", "checkpoint"],
            inputs=[
                switch("noise_aware",
                    "A Latent-CLIP that also reads half-finished images: Safety Guidance, Guide Model and the cuts of Search tell it how much noise is left. "
                    "Finished images are read as before, bit for bit. Thresholds for guidance are others: see the help.",
                    optional=True, advanced=True),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip=(
                        "Latent diffusion (v-prediction) with a one-step generator in the same weights: KSampler with 1 step and cfg 1, "
                        "or 8-20 steps of euler with cfg 2-4. Give it a 64×64 Empty Latent Image."
                    ),
                ),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip=(
                        "Text encoder. It knows captions such as 'a red circle', 'a red circle and a blue star', 'a blue star above a green "
                        "square'. Kinds: circle, square, triangle, star, cross. Colours: red, orange, yellow, green, blue, purple. "
                        "Relations: left of, right of, above, below. It does not know other words."
                    ),
                ),
                io.Vae.Output(
                    display_name="VAE",
                    tooltip="Decodes 4-channel latents to pictures eight times as large and back. Its raw latents have SDXL's scale, but are not SDXL's.",
                ),
                LATENT_CLIP.Output(
                    display_name="LATENT_CLIP",
                    tooltip="Judges latents of this world against its captions, without a decode. It cannot read latents of other models.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        from ..host.scorers.shapes_world import fingerprint

        return fingerprint()

    @classmethod
    def execute(cls, noise_aware: bool = False) -> io.NodeOutput:
        from ..host.front_end.requirements import check_requirements

        check_requirements()
        from ..host.scorers import shapes_world

        model, clip = shapes_world.load_generator()
        return io.NodeOutput(model, clip, shapes_world.load_vae(), shapes_world.load_latent_clip(noise_aware=noise_aware))
