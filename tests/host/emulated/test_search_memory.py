"""Search Best Images where memory is short: the host's own code with the free memory taken as said, or an evaluation that does not fit."""

import pytest
import torch

from latent_clip.tests.search_world import SearchWorld, winners_are_of_the_full_batch


@pytest.fixture(scope="module")
def world(host_env):
    return SearchWorld(host_env)


def test_memory_for_few_of_many_candidates(world, monkeypatch):
    """64 candidates where the memory holds 4 at once: no more are ever evaluated together, and no more is reserved."""
    seen, asked = [], []
    guider = world.guider(world.model, "a red circle")
    model = world.model.model
    room = 4.5 * world.active_items.SLACK * model.memory_required([1, 4, 8, 8])
    monkeypatch.setattr(world.active_items, "room_beside", lambda *args: room)
    monkeypatch.setattr(world.model.__class__, "get_free_memory", lambda *args: room)
    whole = model.apply_model
    monkeypatch.setattr(model, "apply_model", lambda x, *a, **k: seen.append(len(x)) or whole(x, *a, **k))
    import comfy.model_management as mm

    load = mm.load_models_gpu
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required=0, **k: asked.append(memory_required) or load(models, memory_required=memory_required, **k))  # fmt: skip
    found = world.run(guider=guider, candidates=64, keep=3, look="drafts", steps=12)
    assert set(seen) == {4, 3} and len(found.best["samples"]) == 3
    sampling = [bytes for bytes in asked if bytes]
    assert max(sampling) < 2 * 8 * model.memory_required([1, 4, 8, 8])
    full = world.plain(world.empty(64), steps=12)
    torch.testing.assert_close(found.best["samples"], full[found.best["batch_index"]], atol=2e-3, rtol=1e-3)


def test_out_of_memory_halves_what_is_evaluated_together(world, monkeypatch):
    seen = []
    model, whole = world.model.model, world.model.model.apply_model

    def apply(x, *args, **kwargs):
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(x, *args, **kwargs)

    monkeypatch.setattr(model, "apply_model", apply)
    found = world.run(look="cuts")
    assert seen[:2] == [12, 6] and max(seen[2:]) == 2
    monkeypatch.undo()
    winners_are_of_the_full_batch(world, found)


def test_out_of_memory_with_one_is_the_hosts_own_error(world, monkeypatch):
    def apply(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(world.model.model, "apply_model", apply)
    with pytest.raises(torch.OutOfMemoryError):
        world.run(look="drafts")
