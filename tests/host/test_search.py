"""Search Best Images in the real host, on Shapes World: what it keeps, what that costs, and that a winner is what a stock sampler makes."""

import importlib

import pytest
import torch

from latent_clip.tests.guided_world import World

SIZE = 6


class SearchWorld(World):
    """Shapes World with a search."""

    def __init__(self, host_env):
        super().__init__(host_env)

        def module(name: str):
            return importlib.import_module(f"{host_env.pack.__name__}.{name}")

        self.search, self.rows, self.evaluations = map(module, ("host.search", "host.rows", "host.evaluations"))
        self.settings_of_search = module("host.search_state").SearchSettings
        rewards = module("methods.rewards")
        with torch.inference_mode():
            self.text_reward = rewards.text_reward(
                self.clip.encoder(), "text", self.clip.encode_text(["a red circle"])[0]
            )

    def noise(self, seed: int = 5):
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        return Noise_RandomNoise(seed)

    def run(
        self,
        sampler="euler",
        steps=8,
        guider=None,
        latent=None,
        sigmas=None,
        seed=5,
        reward=None,
        drafter=None,
        **settings,
    ):
        import comfy.samplers

        settings = {"candidates": SIZE, "keep": 2, "budget": 0.6, **settings}
        latent = {"samples": torch.zeros(1, 4, 8, 8)} if latent is None else latent
        sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        with torch.inference_mode():
            return self.search.run_search(
                self.noise(seed), guider or self.guider(self.model, "a red circle"), sampler,
                self.sigmas(steps) if sigmas is None else sigmas, latent, reward or self.text_reward,
                self.settings_of_search(**settings), drafter,
            )  # fmt: skip

    def plain(self, latent: dict, sampler="euler", steps=8, guider=None, sigmas=None, seed=5) -> torch.Tensor:
        """What SamplerCustomAdvanced makes of a LATENT."""
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

        with torch.inference_mode():
            made = SamplerCustomAdvanced.execute(
                self.noise(seed), guider or self.guider(self.model, "a red circle"),
                comfy.samplers.sampler_object(sampler), self.sigmas(steps) if sigmas is None else sigmas, latent,
            )  # fmt: skip
        return made[0]["samples"]

    def empty(self, size=SIZE) -> dict:
        return {"samples": torch.zeros(size, 4, 8, 8)}


@pytest.fixture(scope="module")
def world(host_env):
    return SearchWorld(host_env)


def stock_samplers() -> list[str]:
    """The names that every supported host has; the others are found in a test below."""
    return [
        "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms",
        "dpm_fast", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp",
        "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm", "ipndm_v", "deis",
        "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp",
        "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim",
        "uni_pc", "uni_pc_bh2",
    ]  # fmt: skip


THROW_DICE = ("ancestral", "sde", "ddpm", "lcm", "seeds", "sa_solver", "ddim")
"""Samplers with noise of their own, which the host draws for a batch as a whole: a row alone gets other noise."""


def winners_are_of_the_full_batch(world, found, **how) -> None:
    full = world.plain(world.empty(), **how)
    torch.testing.assert_close(found.best["samples"], full[found.best["batch_index"]], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("sampler", stock_samplers())
def test_a_winner_is_what_the_sampler_makes_of_the_full_batch_and_of_it_alone(world, sampler, cfg):
    guider = world.guider(world.model, "a red circle", cfg=cfg)
    found = world.run(sampler, guider=guider, look="cuts")
    report = found.report
    assert [len(one["kept"]) for one in report["rounds"]][-1] == 2
    assert len(report["rounds"]) > 2
    if sampler != "dpm_fast":  # which asks in groups of three
        assert report["cost_spent"] == report["cost_plan"]
    assert report["cost_spent"] < 0.75 * report["cost_plain"]
    winners_are_of_the_full_batch(world, found, sampler=sampler, guider=guider)
    if not any(word in sampler for word in THROW_DICE):
        for place, index in enumerate(found.best["batch_index"]):
            alone = world.plain({**world.empty(1), "batch_index": [index]}, sampler=sampler, guider=guider)
            torch.testing.assert_close(found.best["samples"][place : place + 1], alone, atol=2e-3, rtol=1e-3)


def test_no_stock_sampler_is_forgotten(world):
    import comfy.samplers

    for name in sorted(set(comfy.samplers.SAMPLER_NAMES) - set(stock_samplers()) - {"dpm_adaptive"}):
        found = world.run(name, look="cuts")
        assert found.report["cost_spent"] == found.report["cost_plan"], name
        winners_are_of_the_full_batch(world, found, sampler=name)


@pytest.mark.parametrize("look", ["drafts", "cuts", "both"])
def test_a_sampler_with_one_step_size_for_all_is_refused_by_name(world, look):
    with pytest.raises(ValueError, match="dpm_adaptive"):
        world.run("dpm_adaptive", look=look)


@pytest.mark.parametrize("look", ["drafts", "cuts", "both"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "heun"])
def test_every_look_gives_winners_of_the_full_batch(world, look, sampler):
    found = world.run(sampler, look=look, steps=12)
    report = found.report
    names = [one["name"] for one in report["rounds"]]
    assert ("draft" in names) == (look != "cuts") and any("%" in name for name in names) == (look != "drafts")
    assert names[-1] == "final" and report["rounds"][-1]["kept"] == report["winners"]
    assert report["cost_spent"] == report["cost_plan"] < report["cost_plain"]
    winners_are_of_the_full_batch(world, found, sampler=sampler, steps=12)
    assert len(found.best["samples"]) == 2 and len(found.rest["samples"]) == SIZE - 2
    assert sorted([*found.best["batch_index"], *found.rest["batch_index"]]) == [*range(SIZE)]
    assert found.rest["samples"].isfinite().all()
    scores = report["rounds"][-1]["scores"]
    assert [scores[str(i)] for i in report["winners"]] == sorted(scores.values(), reverse=True)
