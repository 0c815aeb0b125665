"""Guide Model by Reward: steer every sampling of a model up a reward."""

from dataclasses import replace

from comfy_api.latest import io

from .safety_inputs import window_inputs
from .sockets import CATEGORY, frames_input, reward_input


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
