"""Gradient accumulation of latent-clip train: a batch in chunks is the whole batch, in loss, gradients, memory and resume."""

import json
import signal
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("webdataset")

from latent_clip.models.checkpoint import read_checkpoint
from latent_clip.models.latent_clip import LatentCLIP
from latent_clip.tests.unit.test_training import (
    CONFIG,
    PIXEL,
    forked,
    make_shards,
    noisy_config,
    options,
    random_batch,
    run_until,
    set_noise_path,
)
from latent_clip.training.__main__ import main
from latent_clip.training.log import read_log
from latent_clip.training.objectives import Objectives, TrainTask
from latent_clip.training.run import train

TERMS = {
    "contrastive": Objectives(1.0),
    "siglip": Objectives(1.0, siglip=True),
    "distil": Objectives(distil=1.0),
    "all": Objectives(1.0, 0.5, affinity=0.3),
}


def gradients(objectives, accum_freq, batch=None, config=CONFIG, checkpointing=False):
    torch.manual_seed(0)
    model = LatentCLIP(config)
    set_noise_path(model)
    model.visual.set_grad_checkpointing(checkpointing)
    task = TrainTask(model, objectives, accum_freq=accum_freq)
    losses = task(batch or random_batch())
    sum(losses.values()).backward()
    return {key: loss.detach() for key, loss in losses.items()}, {name: p.grad for name, p in task.named_parameters() if p.grad is not None}


def assert_same(one, other):
    assert one[0].keys() == other[0].keys() and one[1].keys() == other[1].keys()
    for key in one[0]:
        torch.testing.assert_close(one[0][key], other[0][key], msg=key)
    assert_near(one[1], other[1])


def assert_near(one, other):
    """Within float32's rounding of the largest number of each gradient."""
    for key, gradient in one.items():
        torch.testing.assert_close(other[key], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4, msg=key)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("accum_freq", [2, 3, 8])
def test_loss_and_gradients_are_those_of_the_whole_batch(terms, accum_freq):
    whole, chunks = gradients(TERMS[terms], 1), gradients(TERMS[terms], accum_freq)
    assert_same(whole, chunks)
    assert "model.visual.proj" in chunks[1]
    assert ("model.logit_scale" in chunks[1]) == (terms != "distil")


def test_noise_levels_and_checkpointing_go_with_chunks():
    batch = replace(random_batch(), noise_level=torch.linspace(0, 0.9, 8))
    for checkpointing in (False, True):
        assert_same(gradients(TERMS["all"], 1, batch, noisy_config(hidden=8)), gradients(TERMS["all"], 4, batch, noisy_config(hidden=8), checkpointing))


def test_tower_holds_no_activations_of_its_chunks():
    """Bytes saved for the backward pass after the forward pass."""

    def held(accum_freq):
        torch.manual_seed(0)
        task, sizes = TrainTask(LatentCLIP(CONFIG), Objectives(1.0), accum_freq=accum_freq), []

        def pack(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            task(random_batch(64))
        return sum(sizes)

    assert held(8) < held(1) / 10


def one_of_two(rank, meet, out, siglip):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    torch.manual_seed(0)
    task = TrainTask(LatentCLIP(CONFIG), Objectives(1.0, 0.5, siglip), rank, 2, accum_freq=2)
    run = DistributedDataParallel(task, static_graph=True)
    for _ in range(2):  # the second step of a static graph takes another way
        task.zero_grad()
        batch = random_batch()
        losses = run(type(batch)(*(None if t is None else t.chunk(2)[rank] for t in vars(batch).values())))
        sum(losses.values()).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in task.named_parameters()}, out)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_two_processes_with_chunks_give_the_gradients_of_one_with_the_whole_batch(tmp_path, kind):
    meet, out = tmp_path / "meet", tmp_path / "out.pt"
    pair = [forked(one_of_two, rank, meet, out, kind == "siglip") for rank in range(2)]
    for process in pair:
        process.join(180)
    assert [process.exitcode for process in pair] == [0, 0]
    _, expected = gradients(Objectives(1.0, 0.5, kind == "siglip"), 1)
    assert_near(expected, torch.load(out, weights_only=True))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    torch.manual_seed(1)
    return make_shards(tmp_path_factory.mktemp("shards"), CustomTextCLIP(**PIXEL).train(False))


def test_training_in_chunks_reads_the_same_and_ends_the_same(shards, tmp_path):
    """16 samples of a step, at once and as 4 chunks of 4."""
    steps = {"train_num_samples": 16 * 12, "lr": 1e-3}
    whole = train(options(shards, tmp_path / "whole", **steps), lambda text: None)
    chunks = train(options(shards, tmp_path / "chunks", batch_size=4, accum_freq=4, **steps), lambda text: None)
    logs = [read_log(path.parent / "logs" / "all.jsonl") for path in (whole, chunks)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
    assert [line["loss"] for line in logs[1]] == pytest.approx([line["loss"] for line in logs[0]], rel=1e-3)
    tensors = load_file(chunks)
    for key, tensor in load_file(whole).items():
        torch.testing.assert_close(tensors[key], tensor, atol=5e-3, rtol=0, msg=key)
    told = [json.loads(read_checkpoint(path).metadata["training"]) for path in (whole, chunks)]
    assert told[0]["batch"] == told[1]["batch"] == 16 and told[1]["samples"] == 16 * 12


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_killed_training_in_chunks_goes_on_to_the_bit(shards, tmp_path, precision):
    def run(folder, dies):
        process = forked(run_until, shards, folder, dies, precision, {"batch_size": 4, "accum_freq": 4})
        process.join(180)
        return process.exitcode

    assert [run(tmp_path / "whole", 0), run(tmp_path / "killed", 7), run(tmp_path / "killed", 0)] == [0, -signal.SIGKILL, 0]
    whole, killed = (load_file(tmp_path / name / "out.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)


@pytest.mark.parametrize("value", ["0", "-2"])
def test_fewer_than_one_chunk_is_refused(shards, tmp_path, capsys, value):
    arguments = ["--train-data", str(shards), "--output", str(tmp_path / "a.safetensors"), "--contrastive", "1", "--accum-freq", value]
    assert main([*arguments, "--model", "Latent-ViT-B-8-512", "--device", "cpu"]) == 1
    assert "--accum-freq" in capsys.readouterr().err
