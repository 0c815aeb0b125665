"""Faults in the data of a training: odd samples, odd tars, odd paths, damaged checkpoints; none of them ends a run unsaid."""

import io
import json
import math
import os
import resource
import shutil
import signal
import tarfile
from dataclasses import replace

import pytest
import torch
from open_clip.model import CustomTextCLIP
from PIL import Image
from safetensors.torch import load_file, save, save_file

pytest.importorskip("webdataset")

from latent_clip.models.checkpoint import read_checkpoint
from latent_clip.tests.unit.test_training import CONFIG, PIXEL, forked, make_shards, options, pictures
from latent_clip.training import objectives, picture_batches, run, start_model
from latent_clip.training.log import append_line, read_log
from latent_clip.training.picture_batches import PictureBatches
from latent_clip.training.reader import Reader, Reading, first_samples
from latent_clip.training.run import train
from latent_clip.training.samples import MOST_FAULTS
from latent_clip.training.shards import HEADER, Sample, ShardError, decode_sample, finished, write_shard
from latent_clip.training.sources import SourceError, records_of
from latent_clip.training.states import States

zeros = torch.zeros
NAN = float("nan")
LEVELS = torch.tensor([0.2, 0.8])


def good(number=0):
    """Members of a sample that is right: one view of 4 × 8 × 8, features of 8 numbers, predictions at two levels."""
    generator = torch.Generator().manual_seed(number)
    latent, features = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 8, generator=generator)
    return {
        "latent.safetensors": save({"latent": latent}),
        "teacher.safetensors": save({"features": features}),
        "predictions.safetensors": save({"x0": zeros(2, 4, 8, 8), "levels": LEVELS}),
        "txt": b"a cat",
        "json": json.dumps({"id": str(number)}).encode(),
    }


def latent(**tensors):
    return {"latent.safetensors": save(tensors)}


def teacher(**tensors):
    return {"teacher.safetensors": save(tensors)}


def predictions(**tensors):
    return {"predictions.safetensors": save(tensors)}


DAMAGED = {
    "json is a list": ({"json": b"[]"}, "json is a list"),
    "json is nested 100,000 deep": ({"json": b"[" * 100_000 + b"]" * 100_000}, "RecursionError"),
    "json is cut off": ({"json": b'{"id"'}, "Expecting"),
    "json is not UTF-8": ({"json": b'{"id": "\xff"}'}, "utf-8"),
    "latent without views": (latent(latent=zeros(0, 4, 8, 8)), "shape"),
    "latent without cells": (latent(latent=zeros(1, 4, 0, 8)), "shape"),
    "latent of rank 3": (latent(latent=zeros(4, 8, 8)), "shape"),
    "latent of rank 5": (latent(latent=zeros(1, 4, 1, 8, 8)), "shape"),
    "latent of integers": (latent(latent=zeros(1, 4, 8, 8, dtype=torch.int8)), "int8"),
    "latent of complex numbers": (latent(latent=zeros(1, 4, 8, 8, dtype=torch.complex64)), "complex64"),
    "NaN latent": (latent(latent=zeros(1, 4, 8, 8) * NAN), "NaN"),
    "no tensor in latent": (latent(), "expected latent"),
    "tensor of another name": (latent(x=zeros(1, 4, 8, 8)), "expected latent"),
    "mean without std": (latent(mean=zeros(1, 4, 8, 8)), "std"),
    "mean beside latent without std": (latent(mean=zeros(1, 4, 8, 8), latent=zeros(1, 4, 8, 8)), "std"),
    "std of fewer views": (latent(mean=zeros(2, 4, 8, 8), std=zeros(1, 4, 8, 8)), "std"),
    "negative std": (latent(mean=zeros(1, 4, 8, 8), std=zeros(1, 4, 8, 8) - 1), "below 0"),
    "damaged latent": ({"latent.safetensors": b"x"}, "Safetensor"),
    "damaged teacher": ({"teacher.safetensors": b"x"}, "Safetensor"),
    "teacher without views": (teacher(features=zeros(0, 8)), "features"),
    "teacher of two views": (teacher(features=zeros(2, 8)), "features"),
    "teacher of rank 1": (teacher(features=zeros(8)), "features"),
    "NaN teacher": (teacher(features=zeros(1, 8) * NAN), "features.*NaN"),
    "NaN patches": (teacher(features=zeros(1, 8), patches=zeros(4, 8) / 0), "patches.*NaN"),
    "patches of rank 3": (teacher(features=zeros(1, 8), patches=zeros(1, 4, 8)), "patches"),
    "predictions without levels": (predictions(x0=zeros(2, 4, 8, 8)), "without levels"),
    "predictions without x0": (predictions(levels=LEVELS), "without x0"),
    "more levels than predictions": (predictions(x0=zeros(1, 4, 8, 8), levels=zeros(9)), "x0"),
    "predictions of other channels": (predictions(x0=zeros(2, 3, 8, 8), levels=LEVELS), "x0"),
    "predictions of other cells": (predictions(x0=zeros(2, 4, 4, 8), levels=LEVELS), "x0"),
    "NaN prediction": (predictions(x0=zeros(2, 4, 8, 8) * NAN, levels=LEVELS), "x0.*NaN"),
    "level above 1": (predictions(x0=zeros(2, 4, 8, 8), levels=LEVELS * 2), "0 to 1"),
    "NaN level": (predictions(x0=zeros(2, 4, 8, 8), levels=LEVELS * NAN), "levels.*NaN"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_sample_is_a_shard_error_with_its_reason(change, reason):
    assert decode_sample(good()).captions == ["a cat"]
    with pytest.raises(ShardError, match=f"unusable sample.*{reason}"):
        decode_sample(good() | change)


def test_sample_without_an_id_has_the_name_of_its_members():
    sample = decode_sample({**good(), "json": b"{}", "__key__": b"folder/a"})
    assert sample.id == "folder/a"


def test_memory_that_runs_out_is_no_damaged_sample(monkeypatch):
    def out(content):
        raise MemoryError

    monkeypatch.setattr("latent_clip.training.shards.load", out)
    with pytest.raises(MemoryError):
        decode_sample(good())


# ----------------------------------------------------------------------------------------------- odd samples among good ones

OF_ANOTHER_KIND = {
    "3 channels": (latent(latent=zeros(1, 3, 8, 8)) | {"predictions.safetensors": save({})}, "3 channels"),
    "other cells": (latent(latent=zeros(1, 4, 6, 6)) | {"predictions.safetensors": save({})}, "6×6 cells"),
    "cells that are no square": (latent(latent=zeros(1, 4, 8, 6)) | {"predictions.safetensors": save({})}, "6×8 cells"),
    "teacher of 9 numbers": (teacher(features=zeros(1, 9)), "9 numbers"),
    "no teacher": (teacher(), "without a teacher"),
    "no caption": ({"txt": b" \n"}, "without captions"),
}  # fmt: skip


def write_tar(path, samples):
    """Samples given as members by extension, in a plain tar."""
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:05}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


READING = Reading(4, 8, teacher=True, context=6, noised=0.5, shuffle=4)


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("kind", [*DAMAGED, *OF_ANOTHER_KIND])
def test_odd_sample_is_passed_over(tmp_path, caplog, kind, place):
    """Also where it is the first, and nothing but the data set itself says what is usual."""
    change, reason = (DAMAGED | OF_ANOTHER_KIND)[kind]
    tar = write_tar(tmp_path / "x.tar", [good(n) | (change if n == place else {}) for n in range(9)])
    reader = Reader([tar], READING)
    batches = [reader.batch(step) for step in range(12)]
    seen = {row.numpy().tobytes() for batch in batches for row in batch.teacher}
    expected = {decode_sample(good(n)).teacher["features"][0].float().numpy().tobytes() for n in range(9) if n != place}
    assert seen == expected
    assert all(tensor.isfinite().all() for batch in batches for tensor in (batch.latents, batch.teacher, batch.noise_level))
    assert reason.split(".*")[0] in caplog.text


def test_data_set_of_odd_samples_ends_with_their_counts(tmp_path):
    samples = [{**good(n), "json": b"[]"} if n % 3 else {**good(n), **teacher(features=zeros(1, 8) * NAN)} for n in range(MOST_FAULTS + 1)]  # fmt: skip
    tar = write_tar(tmp_path / "x.tar", samples)
    with pytest.raises(ShardError, match=rf"{MOST_FAULTS + 1} faults in a row \(67 × .*json is a list.*, 34 × .*NaN") as caught:
        Reader([tar], READING).batch(0)
    assert "\n" not in str(caught.value)


def test_folder_of_pictures_without_captions_ends_no_training(tmp_path):
    latent = {"latent": torch.zeros(1, 4, 8, 8)}
    silent = [Sample(f"a/{number:04}", latent) for number in range(3 * MOST_FAULTS)]
    write_shard(tmp_path, [*silent, *(Sample(f"b/{number}", latent, ["a cat"]) for number in range(8))])
    reader = Reader(finished(tmp_path).tars, Reading(4, 8, context=8, shuffle=2))
    assert len(reader.batch(0).tokens) == len(reader.batch(1).tokens) == 4


def test_shards_without_what_is_asked_for_end_it_although_their_samples_can_be_read(tmp_path):
    tars = [write_tar(tmp_path / f"{n}.tar", [good(n) | {"txt": b""}]) for n in range(MOST_FAULTS + 50)]
    with pytest.raises(ShardError, match=r"no usable sample from 150 shards: \d+ × a sample without captions"):
        Reader(tars, READING).batch(0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_is_no_fault_of_a_sample_ends_the_run(tmp_path, monkeypatch, error):
    tar = write_tar(tmp_path / "x.tar", [good(n) for n in range(9)])

    def stop(*_):
        raise error

    for name in ("decode_sample", "raw_tar_samples"):
        with monkeypatch.context() as patched:
            patched.setattr(f"latent_clip.training.samples.{name}", stop)
            with pytest.raises(error):
                Reader([tar], READING).batch(0)


# ----------------------------------------------------------------------------------------------------- nothing to read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [[], [{"txt": b"a cat"}], [{**good(1), "json": b"[]"}]], ids=["empty", "captions", "odd"])
def test_pass_without_a_sample_is_an_error_and_no_spin(tmp_path, workers, content):
    tars = [write_tar(tmp_path / f"{n}.tar", content) for n in range(3)]
    with pytest.raises(ShardError, match=r"no usable sample from 3 shards: (no sample in them|[0-9]+ × )") as caught:
        Reader(tars, replace(READING, workers=workers)).batch(0)
    assert "\n" not in str(caught.value), "a sentence, also from a worker process"
    with pytest.raises(ShardError, match="no usable sample from 3 shards"):
        first_samples(tars, 10)


def test_one_good_tar_among_many_empty_ones_is_found(tmp_path):
    empty = [write_tar(tmp_path / f"{n}.tar", []) for n in range(MOST_FAULTS + 10)]
    full = write_tar(tmp_path / "full.tar", [good(n) for n in range(4)])
    assert len(Reader([*empty, full], READING).batch(0).latents) == 4


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "name", ["pipe:touch it_ran; cat real.bin #.tar", "run:1/x.tar", "C:\\data\\x.tar", "C:/data/x.tar", "http://host/x.tar", "file:x.tar", "a::b{0..3}.tar", "-.tar"]
)  # fmt: skip
def test_path_is_a_path(tmp_path, monkeypatch, name):
    """Relative ones, as with --train-data . in the folder of the shards."""
    monkeypatch.chdir(tmp_path)
    path = (tmp_path / name).relative_to(tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, [good(n) for n in range(4)])
    shutil.copy(path, "real.bin")
    assert len(first_samples([name], 10)) == 4
    for workers in (0, 1):
        assert len(Reader([name], replace(READING, workers=workers)).batch(0).latents) == 4
    assert not (tmp_path / "it_ran").exists()


# ------------------------------------------------------------------------------------------- pictures that are encoded anew


@pytest.fixture
def rows(tmp_path):
    """Ten pictures, of which Pillow's plug-ins fail over the third and the seventh with types of their own."""
    for number in range(10):
        Image.new("RGB", (32, 32), (25 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return records_of(str(tmp_path))


def fail_over(monkeypatch, names):
    read = picture_batches.picture_of

    def odd(row):
        if any(name in row.id for name in names):
            raise RuntimeError("a plug-in's own")
        return read(row)

    monkeypatch.setattr(picture_batches, "picture_of", odd)


@pytest.mark.parametrize("workers", [0, 1])
def test_odd_picture_is_passed_over_whatever_it_raises(rows, monkeypatch, workers):
    fail_over(monkeypatch, ["3.png", "7.png"])
    pictures = PictureBatches(rows, 16, 5, 4, workers=workers)
    assert all(pictures.batch(step).pixels.isfinite().all() for step in range(4))
    assert len(pictures.skipped) == 2 and set(pictures.skipped.values()) == {"RuntimeError: a plug-in's own"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_odd_pictures_are_a_sentence(rows, monkeypatch, workers):
    fail_over(monkeypatch, [".png"])
    with pytest.raises(SourceError, match=r"50 pictures in a row.*RuntimeError") as caught:
        PictureBatches(rows, 16, 5, 4, workers=workers).batch(0)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The teacher, and its file."""
    torch.manual_seed(1)
    model = CustomTextCLIP(**PIXEL).train(False).requires_grad_(False)
    path = tmp_path_factory.mktemp("clip") / "teacher.safetensors"
    save_file(model.state_dict(), path, {"config": json.dumps(PIXEL)})
    return model, path


@pytest.fixture(scope="module")
def shards(clip, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), clip[0], 48)


def from_teacher(shards, folder, clip, **changes):
    """Options of a short run that starts from the teacher."""
    base = {"model": None, "start": str(clip[1]), "patch_size": 1, "contrastive": 0.0, "distil": 1.0, "train_num_samples": 16 * 4, "warmup": 1}
    return options(shards, folder, **base | changes)


def test_run_passes_over_odd_samples_from_its_statistics_to_its_figures(clip, tmp_path):
    folder = make_shards(tmp_path / "shards", clip[0], 48)
    features, cells = zeros(1, 16) + 0.25, zeros(1, 5, 4, 4)
    odd = [
        Sample("channels", {"latent": zeros(1, 3, 4, 4)}, ["a"], {}, {"features": features}),
        Sample("cells", {"latent": zeros(1, 5, 6, 6)}, ["a"], {}, {"features": features}),
        Sample("width", {"latent": cells}, ["a"], {}, {"features": zeros(1, 9)}),
        Sample("patches", {"latent": cells}, ["a"], {}, {"features": features, "patches": zeros(7, 3)}),
        Sample("NaN", {"latent": cells}, ["a"], {}, {"features": features * NAN}),
    ]
    write_shard(folder, odd)
    out = train(from_teacher(folder, tmp_path, clip, val_data=folder, affinity=1.0), lambda text: None)
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(out).state_dict.values())


def test_without_a_usable_picture_training_says_so(shards, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(shards / HEADER, empty / HEADER)
    write_shard(empty, [Sample("x", {"latent": zeros(1, 5, 4, 4) * NAN})])
    with pytest.raises(ShardError, match="no usable sample from 1 shards: 1 × an unusable sample"):
        train(options(empty, tmp_path), lambda text: None)
    with pytest.raises(ShardError, match="no usable sample"):
        train(options(shards, tmp_path, val_data=empty), lambda text: None)
    for tar in finished(empty).tars:
        tar.with_name(f"{tar.stem}.index.json").unlink()
    with pytest.raises(ShardError, match="no finished shards to measure on"):
        train(options(shards, tmp_path, val_data=empty), lambda text: None)


@pytest.mark.parametrize("changes", [{"distil": 1.0}, {"distil": 0.0, "affinity": 1.0}])
def test_teacher_of_another_width_is_refused_with_and_without_patches(clip, tmp_path, changes):
    """Also for --affinity alone, and where no shard has the teacher's patches."""
    _, _, latents = pictures(16)
    folder = make_shards(tmp_path / "shards", clip[0], 16)
    for path in [*folder.glob("*.tar"), *folder.glob("*.index.json")]:
        path.unlink()
    write_shard(folder, [Sample(str(n), {"latent": latents[n : n + 1]}, ["a"], {}, {"features": zeros(1, 24) + 0.2}) for n in range(16)])  # fmt: skip
    with pytest.raises(ValueError, match=r"24 numbers.*teacher\.safetensors has 16"):
        train(from_teacher(folder, tmp_path, clip, **changes), lambda text: None)
    with pytest.raises(ValueError, match=r"24 numbers.*--model has 16"):
        train(options(folder, tmp_path, distil=1.0), lambda text: None)


def test_distillation_without_features_is_refused_before_it_begins(clip, tmp_path):
    folder = make_shards(tmp_path / "shards", clip[0], 16)
    for path in [*folder.glob("*.tar"), *folder.glob("*.index.json")]:
        path.unlink()
    write_shard(folder, [Sample(str(n), {"latent": zeros(1, 5, 4, 4)}, ["a"]) for n in range(16)])
    with pytest.raises(ValueError, match=r"no sample has a teacher's features.*Embed again with --teacher"):
        train(from_teacher(folder, tmp_path, clip), lambda text: None)


@pytest.mark.parametrize(
    "changes", [{"train_text": True}, {"train_text": True, "contrastive": 1.0}, {"start": "", "model": CONFIG, "contrastive": 1.0}]
)
def test_affinity_needs_the_teachers_own_text_tower(shards, clip, tmp_path, changes):
    with pytest.raises(ValueError, match=r"Got --affinity.*--train-text.*Leave --train-text out"):
        train(from_teacher(shards, tmp_path, clip, affinity=1.0, **changes), lambda text: None)


def test_figures_on_pictures_with_another_teacher_leave_the_agreement_out(shards, clip, tmp_path, caplog):
    folder = make_shards(tmp_path / "val", clip[0], 16)
    for path in [*folder.glob("*.tar"), *folder.glob("*.index.json")]:
        path.unlink()
    _, _, latents = pictures(16)
    write_shard(folder, [Sample(str(n), {"latent": latents[n : n + 1]}, ["a"], {}, {"features": zeros(1, 24) + 0.2}) for n in range(16)])  # fmt: skip
    out = train(options(shards, tmp_path, val_data=folder, train_num_samples=32), lambda text: None)
    assert set(json.loads(read_checkpoint(out).metadata["training"])["figures"]) == {"top1", "top5"}
    assert "another teacher" in caplog.text


def test_scale_of_the_logits_stays_at_most_100(shards, clip, tmp_path, monkeypatch):
    def high(model, siglip):
        with torch.no_grad():
            model.logit_scale.fill_(4.6)

    monkeypatch.setattr(start_model, "start_temperature", high)
    out = train(options(shards, tmp_path / "new", lr=0.3, train_num_samples=16 * 20), lambda text: None)
    states = load_file(tmp_path / "new" / "logs" / "all.safetensors")
    found = [states["param.model.logit_scale"], states["average.model.logit_scale"], load_file(out)["logit_scale"]]
    assert all(0 <= scale.item() <= math.log(100) + 1e-6 for scale in found)
    state = clip[0].state_dict() | {"logit_scale": torch.tensor(5.5)}
    save_file(state, tmp_path / "loud.safetensors", {"config": json.dumps(PIXEL)})
    loud = from_teacher(shards, tmp_path / "loud", (None, tmp_path / "loud.safetensors"))
    assert load_file(train(loud, lambda text: None))["logit_scale"].item() == pytest.approx(math.log(100))


def test_scale_at_its_bound_can_come_down_again():
    """A clamp in the forward pass would leave it without a gradient there."""
    from latent_clip.models.latent_clip import LatentCLIP
    from latent_clip.training.objectives import Batch, Objectives, TrainTask

    torch.manual_seed(0)
    model = LatentCLIP(CONFIG)
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    objectives.limit_temperature(model)
    losses = TrainTask(model, Objectives(contrastive=1.0))(Batch(torch.randn(4, 5, 4, 4), torch.randint(1, 99, (4, 8))))
    losses["contrastive"].backward()
    assert model.logit_scale.grad.abs() > 0


def test_step_takes_no_number_from_the_device(shards, tmp_path, monkeypatch):
    """`Tensor.item` waits for a GPU; numbers are only read when they are logged."""
    fit, found = run.fit, []

    def spied(task, recipe, loss_of, *arguments, **more):
        def spied_loss(draw):
            loss, numbers = loss_of(draw)
            found.extend(numbers.values())
            return loss, numbers

        fit(task, recipe, spied_loss, *arguments, **more)

    monkeypatch.setattr(run, "fit", spied)
    train(options(shards, tmp_path, train_num_samples=32), lambda text: None)
    assert found and all(isinstance(number, torch.Tensor) and not number.requires_grad for number in found)
    assert isinstance(read_log(tmp_path / "logs" / "all.jsonl")[0]["contrastive"], float)


# --------------------------------------------------------------------------------------------------------- checkpoints


def short(shards, folder, **changes):
    return options(shards, folder, **{"train_num_samples": 16 * 10, "save_every": 4} | changes)


def killed_at(shards, folder, step):
    """Train, and be killed after `step` steps."""
    fit = run.fit

    def dying(*arguments, after=None, **more):
        fit(*arguments, after=lambda made: made == step and os.kill(os.getpid(), signal.SIGKILL), **more)

    run.fit = dying
    train(short(shards, folder), lambda text: None)


DAMAGE = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "other metadata": lambda content: save({"x": zeros(1)}, {"note": "no step"}),
    "no number": lambda content: save({"x": zeros(1)}, {"step": "ten"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_costs_one_interval_and_not_the_run(shards, tmp_path, caplog, damage):
    whole = train(short(shards, tmp_path / "whole"), lambda text: None)
    process = forked(killed_at, shards, tmp_path / "torn", 9)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    path = tmp_path / "torn" / "logs" / "all.safetensors"
    assert States(path).read().step == 8
    path.write_bytes(damage(path.read_bytes()))
    again = train(short(shards, tmp_path / "torn"), lambda text: None)
    assert "all.safetensors: the checkpoint is damaged" in caplog.text and "of step 4" in caplog.text
    whole, again = load_file(whole), load_file(again)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert States(path).read().step == 10


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_without_one_before_is_a_sentence(shards, tmp_path, damage):
    train(short(shards, tmp_path, train_num_samples=32), lambda text: None)
    path = tmp_path / "logs" / "all.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"all\.safetensors: the checkpoint is damaged.*Remove it to begin"):
        train(short(shards, tmp_path), lambda text: None)


def test_damaged_checkpoint_never_takes_the_place_of_the_one_before(tmp_path):
    states = States(tmp_path / "x.safetensors")
    for step in (1, 2):
        states.write({"a": zeros(2)}, {"step": str(step)})
    states.path.write_bytes(b"")
    again = States(states.path)
    assert again.read().step == 1
    again.write({"a": zeros(2)}, {"step": "3"})
    assert States(states.path).read().step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.previous.safetensors", "x.safetensors"]
    states.path.unlink()  # as between the two renames
    assert States(states.path).read().step == 1


def test_checkpoint_of_a_killed_process_leaves_no_file_that_stays(shards, tmp_path):
    """Unfinished files have the names by which the next training of the folder knows and removes them."""
    process = forked(killed_while_writing, shards, tmp_path)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and len(list((tmp_path / "logs").glob(".all.safetensors.*.part"))) == 1
    train(short(shards, tmp_path), lambda text: None)
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".*.part"))


def killed_while_writing(shards, folder):
    from latent_clip.training import states

    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    states.save_file = torn
    train(short(shards, folder), lambda text: None)


def full_disk(shards, folder):
    """Train where no file can be larger than 100 kB: what is written beyond fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    from latent_clip.training.__main__ import main

    flags = {"--train-data": shards, "--output": folder / "out.safetensors", "--model": folder / "model.json", "--contrastive": 1,
             "--train-num-samples": 160, "--batch-size": 16, "--save-every": 4, "--workers": 0, "--device": "cpu", "--precision": "fp32"}  # fmt: skip
    os._exit(main([str(part) for pair in flags.items() for part in pair]))


def test_full_disk_is_a_sentence_with_the_file_and_leaves_nothing_torn(shards, tmp_path, capfd):
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    process = forked(full_disk, shards, tmp_path)
    process.join(120)
    said = capfd.readouterr().err
    assert process.exitcode == 1
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "all.safetensors: cannot be written" in said and "Free some space" in said
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / "out.safetensors").exists()


def test_log_on_a_full_disk_is_a_sentence_with_the_file(shards, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "training.json").write_text('{"format": "latent-clip training", "made": []}')  # of an earlier start
    (tmp_path / "logs" / "all.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"all\.jsonl: the log cannot be written \(No space left on device\)"):
        train(short(shards, tmp_path), lambda text: None)


def test_line_that_a_full_disk_tore_spoils_no_other(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, '{"step": 1, "loss": 2.0}')
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, '{"step": 3, "loss": 1.0}')
    assert [line["step"] for line in read_log(path)] == [1, 3]
