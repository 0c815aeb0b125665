"""Model evaluations per step of ComfyUI's samplers, and samplers whose items are coupled."""

from torch import Tensor

TWICE = {
    "heun", "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "seeds_2",
}  # fmt: skip
THRICE = {"heunpp2", "seeds_3"}
NOISE_OF_THEIR_OWN = {
    "dpm_2_ancestral", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu",
    "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "dpmpp_sde",
    "dpmpp_sde_gpu", "ddpm", "er_sde", "euler_ancestral", "euler_ancestral_cfg_pp", "exp_heun_2_x0_sde", "lcm",
    "res_multistep_ancestral", "res_multistep_ancestral_cfg_pp", "sa_solver", "sa_solver_pece", "seeds_2",
    "seeds_3",
}  # fmt: skip
ONE_STEP_SIZE_FOR_ALL = {"dpm_adaptive"}


def sampler_name(sampler) -> str:
    """The host's name of a SAMPLER, "" for one that is not the host's own."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return name.removeprefix("sample_").removesuffix("_function")


def evaluations_of(sampler, sigmas: Tensor) -> tuple[int, ...]:
    """Evaluations of the model for one image, step by step; one per step for a sampler that is not the host's own.

    Args:
        sigmas: (steps + 1,).
    """
    name, steps = sampler_name(sampler), max(0, len(sigmas) - 1)
    asked = 3 if name in THRICE else 2 if name in TWICE else 1
    if name == "sa_solver_pece":
        return (1,) + (2,) * (steps - 1) if steps else ()
    if name == "heunpp2":
        return tuple(min(asked, steps - step) for step in range(steps))
    to_the_end = steps > 0 and float(sigmas[-1]) == 0
    return (asked,) * (steps - to_the_end) + (1,) * to_the_end


def check_sampler(sampler) -> None:
    """Refuse a sampler whose images depend on one another.

    Raises:
        ValueError: names it and says what to do.
    """
    name = sampler_name(sampler)
    if name in ONE_STEP_SIZE_FOR_ALL:
        raise ValueError(
            f"Got the sampler {name}, which chooses one step size for the whole batch, so that dropping an image changes the others. "
            "Expected one whose steps are the sigmas', such as dpmpp_2m."
        )
