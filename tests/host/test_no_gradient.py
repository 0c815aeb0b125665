"""Cosmos-Predict2, whose code turns positions by a kernel without a gradient whatever the host's switch for training says.

Optimize Noise refuses it by the kernel's name, and everything that needs no gradient of the model works on it.
"""

import importlib
import inspect

import pytest
import torch

from latent_clip.tests.host.test_families import JUDGES, Lab


@pytest.fixture(scope="module")
def lab(host_env, tmp_path_factory):
    return Lab(host_env, "cosmos-predict2", tmp_path_factory.mktemp("cosmos"))


def works(lab, judge: str, memory: str) -> None:
    """What an older host, which turns positions by PyTorch, is held to."""
    state, used = lab.reno(lab.reward(judge), memory=memory)
    stock = lab.plain(lab.empty(1), 1)
    torch.testing.assert_close(state.first_latents, stock, atol=2e-4 * stock.std().item(), rtol=1e-3)
    assert state.iterations[0].gradient_norms[0] > 0 and used.checkpointed_blocks == (2 if memory == "low" else 0)


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_optimize_noise_refuses_it_by_the_name_of_the_kernel_where_there_is_one(lab, judge, memory):
    if "ck.rms_rope_split_half" not in inspect.getsource(importlib.import_module("comfy.ldm.cosmos.predict2")):
        works(lab, judge, memory)
        return
    before = lab.fingerprint()
    message = r"its own code is the reason\. Use Search Best Images.*comfy_kitchen\.rms_rope_split_half"
    with pytest.raises(ValueError, match=message):
        lab.reno(lab.reward(judge), memory=memory)
    assert lab.fingerprint() == before


@pytest.mark.parametrize("judge", JUDGES)
def test_what_needs_no_gradient_of_the_model_works(lab, judge):
    latent, plain = lab.empty(), lab.plain(lab.empty(), 3)
    steered = lab.plain(latent, 3, lab.guider(lab.guided(lab.reward(judge), 0.5)))
    assert steered.isfinite().all() and not torch.equal(steered, plain)
    with torch.inference_mode():
        innocent, guilty = (lab.safe(judge, threshold, lab.other) for threshold in (1000, -1000))
    assert torch.equal(lab.plain(latent, 3, lab.guider(innocent)), plain)
    wanted = lab.following(lab.other, 3)
    torch.testing.assert_close(
        lab.plain(latent, 3, lab.guider(guilty)), wanted, atol=2e-3 * wanted.std().item(), rtol=1e-2
    )
    found, full = lab.search(lab.reward(judge)), lab.plain(lab.empty(3), 8)
    torch.testing.assert_close(
        found.best["samples"], full[found.best["batch_index"]], atol=2e-3 * full.std().item(), rtol=1e-2
    )
