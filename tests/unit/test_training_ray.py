"""latent-clip embed on Ray, where it is installed: the same shards, and none lost or twice when workers or the driver die."""

import logging
import multiprocessing
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("webdataset")

from latent_clip.tests.shard_pieces import DATASET, SETTINGS, TOOLS, drive, make
from latent_clip.training.embed import embed
from latent_clip.training.shards import Sample, drop_repeats, finished, read_samples, write_shard
from latent_clip.training.sources import records_of

COUNT = 41


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(COUNT):
        values = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number:03}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return records_of(str(folder))


def by_id(folder):
    samples = list(read_samples(folder))
    assert len({sample.id for sample in samples}) == len(samples)
    return {sample.id: sample for sample in samples}


def tensors(sample):
    parts = {"latent": sample.latent, "teacher": sample.teacher, "predictions": sample.predictions}
    return {f"{part}/{name}": t for part, named in parts.items() for name, t in named.items() if name != "patches"}


def test_rows_that_are_twice_there_are_dropped(tmp_path):
    latent = {"latent": torch.zeros(1, 3, 4, 4)}
    write_shard(tmp_path, [Sample(name, latent) for name in "abc"])
    write_shard(tmp_path, [Sample(name, latent, ["kept"]) for name in "cd"], [("e", "damaged")])
    assert drop_repeats(tmp_path) == 1
    assert sorted(sample.id for sample in read_samples(tmp_path)) == ["a", "b", "c", "d"]
    assert finished(tmp_path).skipped == {"e": "damaged"} and drop_repeats(tmp_path) == 0


class Heard(logging.Handler):
    """What was logged."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.text = ""

    def emit(self, record):
        self.text += record.getMessage()


def test_killed_worker_loses_no_row_and_writes_none_twice(rows, tmp_path):
    pytest.importorskip("ray.data")
    from latent_clip.training.ray_embed import embed_on_ray

    logging.getLogger("ray.data").addHandler(heard := Heard())
    embed(rows, tmp_path / "plain", DATASET, SETTINGS, TOOLS)
    note = tmp_path / "dies"
    counts = embed_on_ray(rows, tmp_path / "out", DATASET, SETTINGS, (make, (str(note), 0.05)), cpus=3)
    assert "[MapBatches(_decode)] -> ActorPoolMapOperator[MapBatches(_Encode)] -> " in heard.text, "nothing else is done where it is encoded"
    assert note.exists() and counts == {"written": COUNT, "there": 0, "no picture": 1}
    plain, ray = by_id(tmp_path / "plain"), by_id(tmp_path / "out")
    assert plain.keys() == ray.keys() and {"teacher/features", "predictions/x0"} <= tensors(plain["000.png"]).keys()
    for row, sample in plain.items():
        torch.testing.assert_close(tensors(ray[row]), tensors(sample), rtol=0, atol=0)
    assert any("patches" in sample.teacher for sample in ray.values())
    again = embed_on_ray(rows, tmp_path / "out", DATASET, SETTINGS, (make, ()))
    assert again["there"] == COUNT and again["written"] == 0  # without starting Ray


def test_killed_driver_loses_no_row_and_writes_none_twice(rows, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    driver = multiprocessing.get_context("spawn").Process(target=drive, args=(rows, out))
    driver.start()
    try:
        end = time.monotonic() + 600  # three processes that import PyTorch, one after the other, on a busy machine
        while not list(out.glob("*.index.json")):
            assert driver.is_alive() and time.monotonic() < end
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.join()
    there = len(finished(out).ids)
    assert 0 < there < COUNT
    counts = embed(rows, out, DATASET, SETTINGS, TOOLS)  # the plain loop goes on with Ray's shards
    assert len(by_id(out)) == COUNT and counts["there"] >= there
    drop_repeats(out)
    assert len(by_id(out)) == COUNT
