"""The burning study keeps what the optimiser keeps, and ends where it ends."""

import pytest
import torch

from latent_clip.methods.reno import RenoSettings, optimize_noise
from latent_clip.studies.burning import study
from latent_clip.tests.unit.test_reno import make_generator, make_reward, noise


@pytest.mark.parametrize("by", [study.REWARD, study.WATCH])
def test_what_the_study_reads_off_is_what_the_optimiser_keeps(by):
    """One long run, cut after 4 and after 9 evaluations, against runs of that length."""
    made = []

    def generate(z, items):
        latents = make_generator()(z, items)
        made.append(latents.detach())
        return latents

    def run(iterations: int):
        settings = RenoSettings(iterations=iterations, watch_keeps=by == study.WATCH)
        return optimize_noise(generate, make_reward(), noise(3), settings, validation=make_reward(9))

    long = run(12)
    rewards, watch = (torch.tensor([getattr(i, name) for i in long.iterations]) for name in ("rewards", "validation"))
    route = study.Route(torch.stack(made), torch.stack(made), rewards, watch, 0.0)
    for iterations in (4, 9):
        kept = route.kept(by, iterations)
        state = run(iterations)
        assert kept.tolist() == state.best_iteration
        assert torch.allclose(route.latents[kept, torch.arange(3)], state.latents, atol=1e-6)


def test_study_ends_where_the_optimiser_ends():
    settings = RenoSettings(iterations=60, patience=3)
    state = optimize_noise(make_generator(), make_reward(), noise(3), settings, validation=make_reward(9))
    counts = [sum(item in i.items for i in state.iterations) for item in range(3)]
    full = optimize_noise(make_generator(), make_reward(), noise(3), RenoSettings(iterations=60), validation=make_reward(9))
    watch = torch.tensor([i.validation for i in full.iterations])
    assert study.Route(watch, watch, watch, watch, 0.0).ends(3).tolist() == counts
    assert min(counts) < 60


def test_white_noise_looks_white_and_a_ramp_does_not():
    white = study.whiteness(torch.randn(4000, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert white["norm"] == pytest.approx(1, abs=0.01) and white["neighbours"] == pytest.approx(0, abs=0.01)
    assert white["low over high"] == pytest.approx(1, abs=0.02)
    ramp = torch.linspace(-1, 1, 8).expand(2, 4, 8, 8)
    assert study.whiteness(ramp)["low over high"] > 5 and study.whiteness(ramp)["neighbours"] > 0.3
