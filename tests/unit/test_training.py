"""latent-clip train without a host: objectives, starts, noise levels, resume to the bit, two processes as one."""

import itertools
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

pytest.importorskip("webdataset")

from latent_clip.commands import main as command
from latent_clip.models.checkpoint import CheckpointError, read_checkpoint
from latent_clip.models.config import infer_config
from latent_clip.models.convert import convert
from latent_clip.models.latent_clip import LatentCLIP, load_latent_clip
from latent_clip.models.latent_spaces import LatentSpace
from latent_clip.models.noise_level import bands
from latent_clip.models.own_spaces import space_as_dict
from latent_clip.training import loop
from latent_clip.training import samples as tolerant
from latent_clip.training.__main__ import main as training_main
from latent_clip.training.log import read_log
from latent_clip.training.loop import Draw, Recipe, fit
from latent_clip.training.objectives import Batch, Objectives, TrainTask, affinity
from latent_clip.training.options import TrainOptions
from latent_clip.training.reader import Reader, Reading, Stream
from latent_clip.training.release import model_card
from latent_clip.training.run import train
from latent_clip.training.samples import MOST_FAULTS
from latent_clip.training.shards import Dataset, Sample, ShardError, finished, write_shard
from latent_clip.training.starts import (
    channel_statistics,
    config_for_latents,
    fit_patch_convolution,
    fold_normalisation,
    from_clip,
    layered_groups,
)

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"layers": 2, "width": 32, "head_width": 16}
PIXEL = {"embed_dim": 16, "vision_cfg": {**VISION, "image_size": 32, "patch_size": 8}, "text_cfg": TEXT}
CONFIG = config_for_latents(PIXEL, channels=5, grid=4, patch_size=1, factor=8)
SPACE = LatentSpace("odd", 5, 8, 0.2, 0.0, "of a test")
NAMES = ["a red cat", "a blue dog", "one green fish", "two old birds"]


def pictures(count, seed=0):
    """Pictures (N, 3, 32, 32) of four kinds, their kinds, and latents (N, 5, 4, 4): a fixed linear map of 8×8 patches, plus an offset."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (count,), generator=generator)
    base = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(99))
    pixels = base[kinds] + 0.2 * torch.randn(count, 3, 32, 32, generator=generator)
    weight = torch.randn(5, 192, generator=torch.Generator().manual_seed(7))
    latents = (weight @ F.unfold(pixels, 8, stride=8)).unflatten(-1, (4, 4)) * 0.5 + 3
    return pixels, kinds.tolist(), latents


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(1)
    model = CustomTextCLIP(**PIXEL).train(False).requires_grad_(False)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(model.state_dict(), path, {"config": json.dumps(PIXEL)})
    return model, path


def make_shards(folder, teacher, count=96, seed=0, levels=()):
    pixels, kinds, latents = pictures(count, seed)
    with torch.no_grad():
        features = F.normalize(teacher.encode_image(pixels), dim=-1)
        patches = teacher.visual.conv1(pixels).flatten(2).movedim(1, 2)
    samples = [
        Sample(
            f"{seed}/{n}", {"latent": latents[n : n + 1]}, [NAMES[kinds[n]]], {},
            {"features": features[n : n + 1], "patches": patches[n]},
            {"x0": torch.stack([latents[n] * (1 - level) for level in levels]), "levels": torch.tensor(levels)} if levels else {},
        )
        for n in range(count)
    ]  # fmt: skip
    Dataset(space_as_dict(SPACE), {"name": "odd.safetensors", "sha256": "ab12"}, {"names": ["centre"], "side": 32},
            {"name": "teacher", "sha256": "cd", "licence": "MIT"}, "test pictures", "CC0").write(folder)  # fmt: skip
    for start in range(0, count, 16):
        write_shard(folder, samples[start : start + 16])
    return folder


@pytest.fixture(scope="module")
def shards(teacher, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), teacher[0])


@pytest.fixture(scope="module")
def held_out(teacher, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("held-out"), teacher[0], 64, seed=5)


def options(shards, folder, **changes):
    base = TrainOptions(
        train_data=shards, output=folder / "out.safetensors", logs=folder / "logs", model=CONFIG, contrastive=1.0, batch_size=16, train_num_samples=16 * 40,
        lr=3e-3, wd=0.01, warmup=5, ema=0.9, precision="fp32", workers=0, shuffle=32, save_every=10,
    )  # fmt: skip
    return replace(base, **changes)


# ------------------------------------------------------------------------------------------------- the noise level


def noisy_config(bands=4, hidden=0, reader=0):
    more = {"latent_noise_bands": bands, "latent_noise_hidden": hidden, "latent_noise_reader": reader}
    more = {key: value for key, value in more.items() if value}
    return {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], **more}}


def set_noise_path(model):
    """Weights as training might leave them: a new noise path is zero."""
    for name, parameter in model.visual.named_parameters():
        if name.startswith("noise_"):
            torch.nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("hidden", [0, 8])
def test_new_noise_aware_tower_is_the_plain_one_to_the_bit_told_or_not(hidden):
    torch.manual_seed(0)
    plain = LatentCLIP(CONFIG)
    aware = LatentCLIP(noisy_config(hidden=hidden))
    assert not aware.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    latents = torch.randn(3, 5, 4, 4)
    expected = plain.visual(latents)
    assert torch.equal(aware.visual(latents), expected)
    assert torch.equal(aware.visual(latents, noise_level=0.7), expected)
    assert aware.visual.reads_noise_level and not hasattr(plain.visual, "reads_noise_level")


@pytest.mark.parametrize("hidden", [0, 8])
def test_once_trained_the_level_counts_and_untold_stays_the_plain_one(hidden):
    torch.manual_seed(0)
    plain = LatentCLIP(CONFIG)
    aware = LatentCLIP(noisy_config(hidden=hidden))
    aware.load_state_dict(plain.state_dict(), strict=False)
    set_noise_path(aware)
    latents = torch.randn(3, 5, 4, 4)
    assert torch.equal(aware.visual(latents), plain.visual(latents))
    assert torch.equal(aware.visual(latents, noise_level=0.0), plain.visual(latents))
    told = aware.visual(latents, noise_level=torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(told[0], plain.visual(latents)[0])
    assert (told - plain.visual(latents))[1:].abs().amax(1).min() > 1e-3
    torch.testing.assert_close(aware.visual(latents[1:2], noise_level=0.5), told[1:2])
    told.sum().backward()
    assert (
        aware.visual.noise_projection.weight.grad.abs().sum() > 0 and aware.visual.positional_embedding.grad is not None
    )
    assert all(branch.up.weight.grad.abs().sum() > 0 for branch in aware.visual.noise_branches)


def test_reader_takes_over_as_the_level_rises_and_finished_images_are_read_as_by_the_plain_tower():
    torch.manual_seed(0)
    plain, aware = LatentCLIP(CONFIG), LatentCLIP(noisy_config(reader=12)).train(False)
    aware.load_state_dict(plain.state_dict(), strict=False)
    latents = torch.randn(3, 5, 4, 4)
    own = F.normalize(plain.visual(latents), dim=-1)
    assert torch.equal(aware.visual(latents), plain.visual(latents))
    torch.testing.assert_close(F.normalize(aware.visual(latents, noise_level=0.0), dim=-1), own)
    told = bands(torch.ones(3), 4)
    read = F.normalize(aware.visual.noise_reader(latents, told), dim=-1)
    torch.testing.assert_close(F.normalize(aware.visual(latents, noise_level=1.0), dim=-1), read)
    half = aware.visual(latents, noise_level=torch.tensor([0.2, 0.6, 0.9]))
    nearness = (F.normalize(half, dim=-1) * own).sum(-1)
    assert nearness[0] > 0.999 and nearness[0] > nearness[1] > nearness[2]


@pytest.mark.parametrize(("hidden", "reader"), [(0, 0), (8, 0), (8, 12)])
def test_noise_aware_tower_is_known_by_its_shapes_and_loads_from_a_file(hidden, reader):
    model = LatentCLIP(noisy_config(6, hidden, reader)).train(False)
    set_noise_path(model)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    known = infer_config(shapes)["vision_cfg"]
    assert known["latent_noise_bands"] == 6 and known.get("latent_noise_hidden", 0) == hidden and known.get("latent_noise_reader", 0) == reader
    loaded = load_latent_clip(noisy_config(6, hidden, reader), model.state_dict())
    latents = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(loaded.visual(latents, noise_level=0.3), model.visual(latents, noise_level=0.3))


def test_gradient_checkpointing_reads_the_level_on_the_way_back_too():
    model = LatentCLIP(noisy_config(hidden=8))
    set_noise_path(model)
    latents, grads = torch.randn(2, 5, 4, 4), []
    for on in (False, True):
        model.visual.set_grad_checkpointing(on)
        model.zero_grad()
        model.visual(latents, noise_level=0.4).square().sum().backward()
        grads.append([p.grad.clone() for name, p in model.visual.named_parameters() if name.startswith("noise_")])
    torch.testing.assert_close(*grads)


# ---------------------------------------------------------------------------------------------------------- starts


def test_folded_normalisation_reads_raw_latents():
    torch.manual_seed(0)
    model, latents = LatentCLIP(CONFIG), torch.randn(64, 5, 4, 4) * torch.tensor([1, 2, 3, 4, 5.0])[:, None, None] + 7
    mean, std = channel_statistics(latents)
    expected = model.visual((latents - mean[:, None, None]) / std[:, None, None])
    fold_normalisation(model, mean, std)
    torch.testing.assert_close(model.visual(latents), expected, atol=2e-4, rtol=1e-3)


def test_least_squares_find_a_convolution_that_is_there(teacher):
    """Latents that are a linear map of patches lose nothing where there are as many channels; here 5 of 192."""
    latents = pictures(200)[2]
    model, _ = teacher
    mean, std = channel_statistics(latents)
    weight = torch.randn(32, 5)
    patches = torch.einsum("wc,nchv->nhvw", weight, latents).flatten(1, 2) + 2.5
    start = from_clip(model, CONFIG, mean, std, 0, (latents, patches))
    torch.testing.assert_close(start.visual.conv1.weight[:, :, 0, 0], weight, atol=0.05, rtol=0.05)
    seen = start.visual.conv1(latents).flatten(2).movedim(1, 2) + start.visual.positional_embedding[1:]
    torch.testing.assert_close(seen, patches + model.visual.positional_embedding[1:], atol=0.1, rtol=0.02)
    assert fit_patch_convolution(start, latents, patches, ridge=0) > 0.999
    with pytest.raises(ValueError, match="patches of shape"):
        fit_patch_convolution(start, latents, patches[:, :4])


def test_start_takes_over_blocks_text_tower_and_resized_positions(teacher):
    model, _ = teacher
    config = config_for_latents(PIXEL, channels=5, grid=12, patch_size=2, factor=8)
    start = from_clip(model, config, torch.zeros(5), torch.ones(5), 0)
    assert torch.equal(
        start.visual.transformer.resblocks[1].mlp.c_fc.weight, model.visual.transformer.resblocks[1].mlp.c_fc.weight
    )
    assert torch.equal(
        start.encode_text(torch.ones(1, 8, dtype=torch.long)), model.encode_text(torch.ones(1, 8, dtype=torch.long))
    )
    assert start.visual.positional_embedding.shape == (37, 32)
    with pytest.raises(ValueError, match="same layers"):
        from_clip(
            model, {**config, "vision_cfg": {**config["vision_cfg"], "layers": 3}}, torch.zeros(5), torch.ones(5), 0
        )


def test_learning_rates_fall_layer_by_layer_and_biases_do_not_decay():
    model = LatentCLIP(CONFIG)
    groups = layered_groups(dict(model.named_parameters()), layers=2, decay=0.5, weight_decay=0.2)
    where = {id(p): group for group in groups for p in group.parameters}
    scale = {name: where[id(p)].lr_scale for name, p in model.named_parameters()}
    assert scale["visual.conv1.weight"] == 0.125 and scale["visual.proj"] == scale["logit_scale"] == 1
    assert scale["visual.transformer.resblocks.0.mlp.c_fc.weight"] == 0.25
    assert where[id(model.visual.ln_post.bias)].weight_decay == 0 and where[id(model.visual.proj)].weight_decay == 0.2
    assert sum(len(group.parameters) for group in groups) == len(list(model.parameters()))


# ------------------------------------------------------------------------------------------------------ objectives


def random_batch(count=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(count, 5, 4, 4, generator=generator), torch.randint(1, 99, (count, 8), generator=generator),
        F.normalize(torch.randn(count, 16, generator=generator), dim=-1),
    )  # fmt: skip


def test_losses_are_open_clips_and_the_cosine():
    torch.manual_seed(0)
    model, batch = LatentCLIP(CONFIG), random_batch()
    losses = TrainTask(model, Objectives(contrastive=2.0, distil=3.0))(batch)
    image, text = model.encode_image(batch.latents, normalize=True), model.encode_text(batch.tokens, normalize=True)
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(8)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(losses["contrastive"], 2 * expected)
    torch.testing.assert_close(losses["distil"], 3 * (1 - (image * batch.teacher).sum(-1).mean()))
    task = TrainTask(model, Objectives(contrastive=1.0, siglip=True))
    logits = model.logit_scale.exp() * image @ text.T + task.logit_bias
    expected = -F.logsigmoid((2 * torch.eye(8) - 1) * logits).sum() / 8
    torch.testing.assert_close(task(batch)["contrastive"], expected)


def test_affinity_is_zero_at_the_teacher_and_sees_what_differs_among_pictures_of_one_caption():
    generator = torch.Generator().manual_seed(0)
    teacher, other = (F.normalize(torch.randn(6, 16, generator=generator), dim=-1) for _ in range(2))
    text = F.normalize(torch.randn(1, 16, generator=generator), dim=-1).expand(6, 16)  # one caption
    assert affinity(teacher, teacher, text, 50.0).item() == pytest.approx(0, abs=1e-5)
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    assert affinity(teacher[order], teacher, text, 50.0) > 1e-3
    a, b = (50 * x @ text.T for x in (other, teacher))
    rows = (b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1))).sum() / 6
    columns = (b.softmax(0) * (b.log_softmax(0) - a.log_softmax(0))).sum() / 6
    torch.testing.assert_close(affinity(other, teacher, text, 50.0), (rows + columns) / 2)


def test_affinity_trains_the_image_tower_alone():
    torch.manual_seed(0)
    model, batch = LatentCLIP(CONFIG), random_batch()
    losses = TrainTask(model, Objectives(affinity=2.0))(batch)
    text = model.encode_text(batch.tokens, normalize=True)
    expected = affinity(model.encode_image(batch.latents, normalize=True), batch.teacher, text, model.logit_scale.exp())
    torch.testing.assert_close(losses["affinity"], 2 * expected)
    losses["affinity"].backward()
    assert model.visual.proj.grad is not None and model.logit_scale.grad is None
    assert all(parameter.grad is None for parameter in model.text.parameters())


def test_what_an_objective_lacks_is_named():
    model = LatentCLIP(CONFIG)
    for lacking in ("tokens", "teacher"):
        with pytest.raises(ValueError, match="expected both"):
            TrainTask(model, Objectives(affinity=1))(replace(random_batch(), **{lacking: None}))
    with pytest.raises(ValueError, match="no objective"):
        Objectives()
    with pytest.raises(ValueError, match="captions"):
        TrainTask(model, Objectives(contrastive=1))(replace(random_batch(), tokens=None))
    with pytest.raises(ValueError, match="teacher"):
        TrainTask(model, Objectives(distil=1))(replace(random_batch(), teacher=None))


def forked(target, *arguments):
    """A process that need not import torch again; one thread, since a fork takes no others along."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def one_of_two(rank, meet, out, siglip):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    torch.manual_seed(0)
    task = TrainTask(LatentCLIP(CONFIG), Objectives(1.0, 0.5, siglip), rank, 2)
    run = DistributedDataParallel(task, static_graph=True)
    batch = Batch(*(None if t is None else t.chunk(2)[rank] for t in vars(random_batch()).values()))
    losses = run(batch)
    sum(losses.values()).backward()
    total = torch.stack([losses["contrastive"], losses["distil"]]).detach()
    dist.all_reduce(total)
    if rank == 0:
        torch.save({"losses": total / 2, "grads": {n: p.grad for n, p in task.named_parameters()}}, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_processes_give_loss_and_gradients_of_one_with_the_double_batch(tmp_path, kind):
    meet, out = tmp_path / "meet", tmp_path / "out.pt"
    pair = [forked(one_of_two, rank, meet, out, kind == "siglip") for rank in range(2)]
    for process in pair:
        process.join(180)
    assert [process.exitcode for process in pair] == [0, 0]
    two = torch.load(out, weights_only=True)
    torch.manual_seed(0)
    task = TrainTask(LatentCLIP(CONFIG), Objectives(1.0, 0.5, kind == "siglip"))
    losses = task(random_batch())
    sum(losses.values()).backward()
    torch.testing.assert_close(two["losses"], torch.stack([losses["contrastive"], losses["distil"]]).detach())
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(two["grads"][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)


# ---------------------------------------------------------------------------------------------------------- reader


def test_batches_repeat_from_every_interval(shards):
    tars, reading = finished(shards).tars, Reading(8, 4, interval=3, context=8, teacher=True, shuffle=16)
    first = Reader(tars, reading)
    batches = [first.batch(step) for step in range(6)]
    again = Reader(tars, reading).batch(3)
    assert torch.equal(again.latents, batches[3].latents) and torch.equal(again.tokens, batches[3].tokens)
    assert not torch.equal(batches[0].latents, batches[3].latents)
    assert not torch.equal(Reader(tars, reading, rank=1).batch(0).latents, batches[0].latents)
    with pytest.raises(ShardError, match="start of an interval"):
        Reader(tars, reading).batch(4)


def test_workers_read_what_they_read_before(shards):
    reading = Reading(8, 4, interval=2, teacher=True, workers=2, shuffle=16)
    one, two = (Reader(finished(shards).tars, reading).batch(0) for _ in range(2))
    assert torch.equal(one.latents, two.latents)


def test_broken_and_missing_shards_are_passed_over(shards, tmp_path):
    good = finished(shards).tars
    (tmp_path / "broken.tar").write_bytes(good[0].read_bytes()[:700])
    (tmp_path / "page.tar").write_bytes(b"<html>")
    tars = [*good, tmp_path / "broken.tar", tmp_path / "page.tar", tmp_path / "missing.tar"]
    reader = Reader(tars, Reading(8, 4, interval=50, shuffle=8))
    assert all(reader.batch(step).latents.shape == (8, 5, 4, 4) for step in range(20))
    with pytest.raises(ShardError, match=f"{MOST_FAULTS + 1} faults in a row .*{MOST_FAULTS + 1} × FileNotFoundError"):
        Reader([tmp_path / f"missing-{n}.tar" for n in range(1000)], Reading(8, 4, channels=5)).batch(0)


def test_predictions_come_with_their_level(teacher, tmp_path):
    make_shards(tmp_path, teacher[0], 32, levels=(0.25, 0.75))
    reader = Reader(finished(tmp_path).tars, Reading(64, 4, noised=0.5, teacher=True, shuffle=8))
    batch = reader.batch(0)
    counts = {level: (batch.noise_level == level).sum().item() for level in (0.0, 0.25, 0.75)}
    assert sum(counts.values()) == 64 and min(counts.values()) > 3
    assert batch.latents[batch.noise_level == 0.75].mean() < batch.latents[batch.noise_level == 0].mean() / 2


def test_posterior_moments_are_drawn_anew(tmp_path):
    mean, std = torch.full((1, 5, 4, 4), 3.0), torch.full((1, 5, 4, 4), 0.5)
    write_shard(tmp_path, [Sample(str(n), {"mean": mean, "std": std}) for n in range(4)])
    latents = Reader(finished(tmp_path).tars, Reading(64, 4, shuffle=4)).batch(0).latents
    assert abs(latents.mean() - 3) < 0.05 and abs(latents.std() - 0.5) < 0.05


# ------------------------------------------------------------------------------------------------------------ runs


def test_it_learns_from_captions_and_the_file_loads(shards, held_out, tmp_path):
    out = train(options(shards, tmp_path, val_data=held_out, probe_every=20), lambda text: None)
    checkpoint = read_checkpoint(out)
    assert checkpoint.space == SPACE and checkpoint.config == CONFIG
    figures = json.loads(checkpoint.metadata["training"])["figures"]
    assert figures["top1"] > 0.9  # four kinds: chance is 0.25
    log = read_log(tmp_path / "logs" / "all.jsonl")
    assert log[-1]["loss"] < log[0]["loss"] and any("probe top1" in line for line in log)
    assert (tmp_path / "logs" / "training.png").stat().st_size > 1000
    loaded = load_latent_clip(checkpoint.config, checkpoint.state_dict)
    _, _, latents = pictures(4, seed=5)
    assert loaded.encode_image(latents).isfinite().all()


def test_it_learns_from_a_teacher_alone_and_keeps_its_text_tower(teacher, shards, held_out, tmp_path):
    model, path = teacher
    run = options(
        shards, tmp_path, val_data=held_out, model=None, start=str(path), patch_size=1, contrastive=0.0, distil=1.0,
        patch_samples=16 * 10, layer_decay=0.8,
    )  # fmt: skip
    checkpoint = read_checkpoint(train(run, lambda text: None))
    figures = json.loads(checkpoint.metadata["training"])["figures"]
    start = read_log(tmp_path / "logs" / "patches.jsonl")[0]["distil"]
    assert figures["teacher"] > 0.98 and 1 - figures["teacher"] < start / 3
    for key, weight in model.text.state_dict().items():
        assert torch.equal(checkpoint.state_dict[f"text.{key}"], weight)


def test_teacher_of_another_space_than_the_start_is_refused(shards, tmp_path):
    other = {**PIXEL, "embed_dim": 24}
    save_file(CustomTextCLIP(**other).state_dict(), tmp_path / "other.safetensors", {"config": json.dumps(other)})
    start = str(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"16 numbers.*other\.safetensors has 24"):
        train(options(shards, tmp_path, model=None, start=start, patch_size=1, contrastive=0.0, distil=1.0))


def test_precision_checkpointing_and_siglip_run(shards, tmp_path):
    for number, changes in enumerate(
        ({"precision": "amp_bf16"}, {"grad_checkpointing": True, "siglip": True}, {"precision": "amp"})
    ):
        folder = tmp_path / str(number)
        run = options(shards, folder, train_num_samples=16 * 4, **changes)
        checkpoint = read_checkpoint(train(run, lambda text: None))
        assert all(tensor.isfinite().all() for tensor in checkpoint.state_dict.values())


def run_until(shards, folder, dies, precision, changes=None):
    """Train, and be killed in the middle of the step `dies` of this process; 0: not at all."""
    step, made = loop._step, itertools.count(1)

    def counted(*arguments):
        if next(made) == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        step(*arguments)

    loop._step = counted
    train(options(shards, folder, train_num_samples=16 * 14, save_every=4, precision=precision, **(changes or {})), lambda text: None)


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_killed_and_resumed_it_is_the_same_run_to_the_bit(shards, tmp_path, precision):
    def run(folder, dies):
        process = forked(run_until, shards, folder, dies, precision)
        process.join(180)
        return process.exitcode

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", 7) == -signal.SIGKILL  # between two checkpoints
    assert run(tmp_path / "killed", 6) == -signal.SIGKILL  # again, further on
    assert run(tmp_path / "killed", 0) == 0
    whole, killed = (load_file(tmp_path / name / "out.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
    logs = [read_log(tmp_path / name / "logs" / "all.jsonl") for name in ("whole", "killed")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def one_of_torchrun(rank, port, arguments):
    """What torchrun tells each of two processes."""
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.exit(training_main(arguments))


def test_two_processes_of_torchrun_train_one_file_and_go_on(teacher, shards, held_out, tmp_path):
    out, found = tmp_path / "out.safetensors", []
    for samples in (16 * 2 * 4, 16 * 2 * 8):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [
            "--train-data", str(shards), "--val-data", str(held_out), "--output", str(out), "--start", str(teacher[1]), "--patch-size", "1",
            "--distil", "1", "--contrastive", "1", "--train-num-samples", str(samples), "--batch-size", "16", "--workers", "0",
            "--precision", "fp32", "--device", "cpu", "--lr", "1e-3", "--warmup", "2", "--save-every", "4",
        ]  # fmt: skip
        pair = [forked(one_of_torchrun, rank, port, arguments) for rank in range(2)]
        for process in pair:
            process.join(180)
        assert [process.exitcode for process in pair] == [0, 0]
        told = json.loads(read_checkpoint(out).metadata["training"])
        assert told["batch"] == 32
        found.append(told["figures"]["teacher"])
    assert found[1] > found[0]
    assert [line["step"] for line in read_log(tmp_path / "out.logs" / "all.jsonl")] == [1, 4, 8]


def test_checkpoint_of_another_model_is_refused(shards, tmp_path):
    train(options(shards, tmp_path, train_num_samples=32), lambda text: None)
    with pytest.raises(ValueError, match=r"another model.*--logs"):
        train(options(shards, tmp_path, train_num_samples=32, siglip=True), lambda text: None)


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="Lower --lr"):
        fit(
            model,
            Recipe("x", 5, 1.0),
            lambda draw: (model(draw.normal(4, 2)).sum() * math.nan, {}),
            tmp_path / "x.safetensors",
        )


def test_shapes_world_is_trained_by_this_loop_which_is_adamw_with_warmup_cosine_clipping_and_average(
    tmp_path, monkeypatch
):
    """Written out once more, as the recipe of the shipped weights has it: they must come out the same for ever."""
    from latent_clip.demo import training as demo

    monkeypatch.setattr(demo, "CACHE", tmp_path)
    recipe, models = Recipe("x", steps=12, lr=0.1, seed=3, warmup=4), []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(torch.nn.Linear(4, 3))

    def loss_of(model, draw):
        return (model(draw.normal(8, 4)) * 9 + draw.uniform(8, 1)).square().mean()

    demo.fit(models[0], recipe, lambda draw: (loss_of(models[0], draw), {}))
    model, average = models[1], [p.detach().clone() for p in models[1].parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = (
            0.1 * min(1, (step + 1) / 4) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / 12)) / 2)
        )
        optimizer.zero_grad()
        loss_of(model, Draw.of(3, step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (1 + step) / (10 + step))
        average = [a * decay + p.detach() * (1 - decay) for a, p in zip(average, model.parameters())]
    for trained, expected in zip(models[0].parameters(), average):
        torch.testing.assert_close(trained.detach(), expected, atol=1e-6, rtol=1e-5)


def test_draws_depend_on_seed_and_step_alone():
    one, two, other = Draw.of(1, 5), Draw.of(1, 5), Draw.of(1, 6)
    assert torch.equal(one.normal(4), two.normal(4)) and not torch.equal(two.normal(4), other.normal(4))
    assert one.python.random() == two.python.random()


# -------------------------------------------------------------------------------------------------- the command line


def test_noise_path_alone_is_trained_and_finished_images_are_read_as_by_the_start(teacher, shards, tmp_path):
    start, out = train(options(shards, tmp_path, train_num_samples=32), lambda text: None), tmp_path / "aware.safetensors"
    noised = make_shards(tmp_path / "noised", teacher[0], 64, levels=(0.25, 0.75))
    assert command([
        "train", "--train-data", str(noised), "--output", str(out), "--start", str(start), "--patch-size", "1", "--distil", "1", "--affinity", "1",
        "--train-num-samples", "160", "--batch-size", "16", "--workers", "0", "--warmup", "1", "--lr", "3e-3", "--precision", "fp32",
        "--noise-bands", "4", "--noise-hidden", "8", "--noise-only", "--noised", "1", "--device", "cpu",
    ]) == 0  # fmt: skip
    plain, aware = (read_checkpoint(path) for path in (start, out))
    assert all(torch.equal(aware.state_dict[key], value) for key, value in plain.state_dict.items())
    tower = load_latent_clip(aware.config, aware.state_dict).visual
    latents = pictures(4)[2]
    assert torch.equal(tower(latents), load_latent_clip(plain.config, plain.state_dict).visual(latents))
    assert not torch.allclose(tower(latents, noise_level=0.5), tower(latents))


def test_noise_path_alone_needs_one(teacher, shards, tmp_path):
    with pytest.raises(ValueError, match="--noise-bands"):
        train(options(shards, tmp_path, start=str(teacher[1]), patch_size=1, noise_only=True), lambda text: None)


def test_command_trains_and_writes_a_card(teacher, shards, held_out, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert command([
        "train", "--train-data", str(shards), "--val-data", str(held_out), "--output", str(out), "--start", str(teacher[1]),
        "--patch-size", "1", "--distil", "1", "--train-num-samples", "64", "--batch-size", "16", "--workers", "0",
        "--precision", "fp32", "--noise-bands", "4", "--device", "cpu",
    ]) == 0  # fmt: skip
    assert command(["card", str(out)]) == 0
    card = capsys.readouterr().out
    for told in ("odd.safetensors", "sha256 ab12", "5 channels", "CC0", "MIT", "may be given", "teacher: 0."):
        assert told in card
    small = tmp_path / "small.safetensors"
    convert(out, small, "fp16")
    assert model_card(small) and read_checkpoint(small).space == SPACE


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distil", "1", "--model", "Latent-ViT-B-8-512"], "no text tower"),
        (["--contrastive", "1", "--model", "Latent-ViT-B-8-512"], "for 4 channels of 64 cells"),
        (["--contrastive", "1"], "neither --model nor --start"),
        (["--contrastive", "1", "--model", "nothing.json"], "nothing.json"),
        (["--contrastive", "1", "--start", "x", "--model", "y"], "expected one"),
        (["--affinity", "1", "--model", "Latent-ViT-B-8-512"], "no text tower"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(shards, tmp_path, capsys, flags, message):
    arguments = [
        "train",
        "--train-data",
        str(shards),
        "--output",
        str(tmp_path / "x.safetensors"),
        "--device",
        "cpu",
        *flags,
    ]
    assert command(arguments) == 1
    assert message in capsys.readouterr().err


def test_file_of_another_vae_is_refused_by_name(shards, tmp_path):
    """Its shape may be right: what counts is the name that the file gives its space."""
    from latent_clip.models.latent_spaces import LATENT_SPACES, LatentSpaceError, common_space

    space = read_checkpoint(train(options(shards, tmp_path, train_num_samples=32), lambda text: None)).space
    twin = replace(LATENT_SPACES["sdxl"], name="sdxl-eq-1a2b")
    with pytest.raises(LatentSpaceError, match="odd"):
        common_space([space, LATENT_SPACES["flux"]])
    with pytest.raises(LatentSpaceError, match="sdxl-eq-1a2b"):
        common_space([LATENT_SPACES["sdxl"], twin])


def test_file_whose_space_record_is_wrong_is_refused(shards, tmp_path):
    out = train(options(shards, tmp_path, train_num_samples=32), lambda text: None)
    metadata = read_checkpoint(out).metadata
    save_file(
        load_file(out), out, {**metadata, "latent_space_record": '{"name": "else", "channels": 5, "downscale": 8}'}
    )
    with pytest.raises(CheckpointError, match="two latent spaces"):
        read_checkpoint(out)


def test_ten_thousand_shards_with_slow_missing_and_broken_ones(shards, tmp_path, monkeypatch):
    """The names of 10,000 shards: of each hundred two are missing, one is cut off, one answers late; none stops the reader."""
    whole, *good = finished(shards).tars
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:5000])
    kinds = {
        0: tmp_path / "gone.tar",
        1: tmp_path / "gone.tar",
        2: tmp_path / "cut.tar",
        3: tmp_path / "slow.tar",
    }
    (tmp_path / "slow.tar").write_bytes(good[1].read_bytes())
    read = tolerant.raw_tar_samples

    def read_slowly(tar):
        time.sleep(0.05 * (tar.name == "slow.tar"))
        return read(tar)

    monkeypatch.setattr(tolerant, "raw_tar_samples", read_slowly)
    tars = [kinds.get(number % 100, good[number % len(good)]) for number in range(10_000)]
    stream = Stream(tars, Reading(64, 4, context=8, teacher=True, shuffle=256), 0)
    rows = list(itertools.islice(stream, 64 * 120))
    assert len(rows) == 64 * 120 and all(row["latents"].shape == (5, 4, 4) and row["tokens"].shape == (8,) for row in rows)
    known = {row.numpy().tobytes() for row in next(iter(DataLoader(Stream([whole, *good], stream.reading, 0), 2000)))["latents"]}
    assert {row["latents"].numpy().tobytes() for row in rows} <= known, "nothing of a broken one comes through half"
    drawn = 64 * 120 / 16 / 0.97  # tars of 16 samples
    assert {"FileNotFoundError", "ReadError"} <= set(stream.faults.counts) <= {"FileNotFoundError", "ReadError", "ShardError"}
    assert 0.4 < stream.faults.counts["FileNotFoundError"] / (0.02 * drawn) < 2
    assert 0.2 < stream.faults.counts["ReadError"] / (0.01 * drawn) < 3
