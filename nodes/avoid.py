"""Avoid reward: negative where a latent shows a concept that is to be kept out."""

from comfy_api.latest import io

from .rewards import REWARDS
from .safety_inputs import concept_inputs, concepts_fingerprint
from .sockets import latent_clip_input, reward_output, safety_fit_input, weight_input


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
