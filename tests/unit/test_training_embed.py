"""latent-clip embed without a host: pictures of every kind, captions from everywhere, shards that resume by row."""

import io
import json
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

webdataset = pytest.importorskip("webdataset")

from latent_clip.models.file_metadata import statistics_of, unlike  # noqa: E402
from latent_clip.models.latent_spaces import LATENT_SPACES, LatentSpace  # noqa: E402
from latent_clip.models.own_spaces import space_as_dict, space_of_dict  # noqa: E402
from latent_clip.training.embed import Settings, Tools, begin, embed  # noqa: E402
from latent_clip.training.pictures import Skipped, cut, read_upright, views_of  # noqa: E402
from latent_clip.training.shards import (  # noqa: E402
    Dataset,
    Sample,
    ShardError,
    decode_sample,
    finished,
    raw_tar_samples,
    read_dataset,
    read_samples,
    write_shard,
)
from latent_clip.training.sources import SourceError, records_of  # noqa: E402

SPACE = LatentSpace("pooled", 3, 8, 1.0, 0.0, "of a test")
DATASET = Dataset(space_as_dict(SPACE), {"name": "pool", "sha256": "0"}, {"names": ["centre"], "side": 32})
SETTINGS = Settings(side=32, batch=4, shard=5)


def pooled(pixels):
    """A VAE: each cell is the mean colour of 8×8 pixels."""
    return {"latent": torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)}


class Teacher:
    def features(self, pixels):
        return torch.nn.functional.normalize(pixels.mean((1, 2)) + 0.1, dim=-1)

    def patches(self, pixels, grid):
        return torch.nn.functional.adaptive_avg_pool2d(pixels.movedim(-1, 1), grid).flatten(2).movedim(1, 2)


def save(picture, suffix=".png", **options):
    file = io.BytesIO()
    picture.save(file, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper()), **options)
    return file.getvalue()


def noise(width=40, height=32, seed=0, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values, mode) if mode != "L" else Image.fromarray(values[..., 0])


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "pictures"
    (source / "sub").mkdir(parents=True)
    for number in range(11):
        (source / ("sub" if number % 2 else ".") / f"p{number:02}.png").write_bytes(save(noise(seed=number)))
    (source / "p00.txt").write_text("a cat\n\na red cat\n")
    (source / "broken.png").write_bytes(save(noise())[:300])
    (source / "not.jpg").write_bytes(b"<html>")
    (source / ".hidden.png").write_bytes(save(noise()))
    return source


# ------------------------------------------------------------------------------------------------------- pictures


def test_turned_picture_is_read_upright():
    picture = Image.new("RGB", (60, 30), "black")
    picture.paste("white", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it right
    read = read_upright(save(picture, ".jpg", exif=exif, quality=95))
    assert read.size == (30, 60)
    values = np.asarray(read)
    assert values[:20].mean() > 250 and values[-20:].mean() < 5


@pytest.mark.parametrize(
    ("picture", "suffix", "mean"),
    [
        (Image.new("CMYK", (40, 40), (0, 255, 255, 0)), ".jpg", (255, 0, 0)),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 0)), ".png", (255, 255, 255)),
        (Image.new("RGBA", (40, 40), (255, 0, 0, 128)), ".png", (255, 127, 127)),
        (Image.new("P", (40, 40), 0), ".gif", None),
        (Image.new("L", (40, 40), 90), ".png", (90, 90, 90)),
        (Image.fromarray(np.full((40, 40), 32768, np.uint16)), ".png", (128, 128, 128)),
        (Image.new("1", (40, 40), 1), ".tif", (255, 255, 255)),
    ],
    ids=["CMYK", "transparent", "half transparent", "palette", "grey", "16 bit", "1 bit"],
)
def test_every_kind_of_picture_becomes_rgb(picture, suffix, mean):
    read = read_upright(save(picture, suffix))
    assert read.mode == "RGB" and read.size == (40, 40)
    if mean:
        np.testing.assert_allclose(np.asarray(read).mean((0, 1)), mean, atol=4)


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "lime")]
    read = read_upright(save(frames[0], ".gif", save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(np.asarray(read).mean((0, 1)), (255, 0, 0), atol=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no picture"),
        (b"<html>", "no picture"),
        (save(noise(200, 200))[:2000], "damaged"),
        (save(Image.new("RGB", (8, 40))), "too small"),
        (save(Image.new("1", (20_000, 20_000))), "too large"),
    ],
    ids=["empty", "a page", "cut off", "small", "huge"],
)
def test_what_cannot_be_read_is_skipped_with_its_reason(content, reason):
    with pytest.raises(Skipped, match=reason):
        read_upright(content)


def test_views_lie_in_the_picture_and_repeat():
    names = ("centre", "flip", "random", "random-flip")
    for size in ((40, 32), (17, 500)):
        views = views_of(size, names, "a")
        assert views == views_of(size, names, "a") != views_of(size, names, "b")
        assert all(v.left + v.side <= size[0] and v.top + v.side <= size[1] and v.left >= 0 <= v.top for v in views)
        assert [view.flipped for view in views] == [False, True, False, True]
    centre, flip = (cut(noise(), view, 32) for view in views_of((40, 32), names[:2], "a"))
    torch.testing.assert_close(flip, centre.flip(1))
    torch.testing.assert_close(centre, torch.from_numpy(np.asarray(noise())[:, 4:36].astype(np.float32) / 255))


# -------------------------------------------------------------------------------------------------------- sources


def test_captions_beside_the_pictures(folder):
    rows = {row.id: row for row in records_of(str(folder))}
    assert len(rows) == 13 and ".hidden.png" not in rows
    assert rows["p00.png"].captions == ["a cat", "a red cat"] and rows["sub/p01.png"].captions == []


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_captions_in_a_table(folder, tmp_path, kind):
    records = [{"file_name": "p02.png", "text": "two"}, {"file_name": "sub/p03.png", "text": "three"}]
    path = tmp_path / f"captions.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(records), path)
    rows = {row.id: row.captions for row in records_of(str(folder), str(path))}
    assert (rows["p02.png"], rows["sub/p03.png"], rows["p00.png"]) == (["two"], ["three"], ["a cat", "a red cat"])


def test_table_that_names_no_picture_is_refused(folder, tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"title": "a cat"}')
    with pytest.raises(SourceError, match=r"captions\.jsonl.*file_name"):
        records_of(str(folder), str(tmp_path / "captions.jsonl"))


def test_tars_of_webdataset(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name, content in (
                ("a.png", save(noise(seed=number))), ("a.txt", b"first"),
                ("b.jpg", save(noise(seed=9), ".jpg")), ("b.json", b'{"caption": "second"}'), ("c.txt", b"alone"),
            ):  # fmt: skip
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rows = records_of(str(tmp_path / "*.tar"))
    assert [(row.id, row.captions) for row in rows] == [
        ("0.tar/a.png", ["first"]), ("0.tar/b.jpg", ["second"]), ("1.tar/a.png", ["first"]), ("1.tar/b.jpg", ["second"])
    ]  # fmt: skip
    assert rows[2].read() == save(noise(seed=1))


def test_address_of_fsspec(folder):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/a.png", save(noise()))
    memory.pipe("/set/a.txt", b"from far away")
    (row,) = records_of("memory://set")
    assert row.captions == ["from far away"] and row.read() == save(noise())


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.tar"])
def test_source_without_pictures_is_refused(tmp_path, source):
    with pytest.raises(SourceError, match="no such"):
        records_of(str(tmp_path / source))


# --------------------------------------------------------------------------------------------------------- shards


def test_pictures_become_shards(folder, tmp_path):
    settings = Settings(side=32, views=("centre", "flip"), batch=4, shard=5, patch_grid=4, patch_samples=4)
    said = []
    counts = embed(records_of(str(folder)), tmp_path / "out", DATASET, settings, Tools(pooled, Teacher()), said.append)
    assert counts == {"written": 11, "there": 0, "damaged": 1, "no picture": 1}
    assert "13/13 pictures" in said[-1] and "a second" in said[-1]
    samples = {sample.id: sample for sample in read_samples(tmp_path / "out")}
    assert len(samples) == 11 and read_dataset(tmp_path / "out") == DATASET
    sample = samples["p00.png"]
    assert sample.captions == ["a cat", "a red cat"] and sample.about["size"] == [40, 32]
    expected = pooled(cut(noise(), views_of((40, 32), ("centre",), "")[0], 32)[None])["latent"]
    torch.testing.assert_close(sample.latent["latent"][0].float(), expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(sample.latent["latent"][1], sample.latent["latent"][0].flip(-1))
    assert sample.latent["latent"].dtype == torch.float16 and sample.teacher["features"].shape == (2, 3)
    assert 4 <= sum("patches" in s.teacher for s in samples.values()) <= 8  # whole batches until there are 4
    assert finished(tmp_path / "out").skipped == {"broken.png": "damaged", "not.jpg": "no picture"}


def test_webdataset_itself_reads_them(folder, tmp_path):
    embed(records_of(str(folder)), tmp_path / "out", DATASET, SETTINGS, Tools(pooled))
    urls = [str(path) for path in (tmp_path / "out").glob("*.tar")]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(read) == 11 and all({"latent.safetensors", "json"} <= set(sample) for sample in read)


def test_no_pickle_is_in_a_shard(folder, tmp_path):
    embed(records_of(str(folder)), tmp_path / "out", DATASET, SETTINGS, Tools(pooled, Teacher()))
    for tar in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(tar) as content:
            assert {name.partition(".")[2] for name in content.getnames()} <= {
                "latent.safetensors", "teacher.safetensors", "txt", "json",
            }  # fmt: skip


def test_authors_latents_are_read_as_tensors_only():
    file, evil = io.BytesIO(), io.BytesIO()
    torch.save(torch.ones(4, 8, 8), file)
    torch.save({"code": Sample}, evil)
    sample = decode_sample({"latent.pt": file.getvalue(), "txt": b"a cat"})
    assert sample.latent["latent"].shape == (1, 4, 8, 8) and sample.captions == ["a cat"]
    with pytest.raises(ShardError, match=r"latent\.pt"):
        decode_sample({"latent.pt": evil.getvalue()})


def test_second_run_does_nothing_and_other_options_are_refused(folder, tmp_path):
    rows = records_of(str(folder))
    embed(rows, tmp_path / "out", DATASET, SETTINGS, Tools(pooled))
    again = embed(rows, tmp_path / "out", DATASET, SETTINGS, Tools(lambda pixels: pytest.fail("embedded twice")))
    assert again["there"] == 11 and again["written"] == 0
    other = Dataset(DATASET.space, {"name": "other", "sha256": "1"}, DATASET.views)
    with pytest.raises(ShardError, match="another vae"):
        embed(rows, tmp_path / "out", other, SETTINGS, Tools(pooled))
    for signature in ({"encoder.a": [1.0]}, {"encoder.a": [1.001]}):  # none before, then of the same file in another precision
        same = replace(DATASET, vae={**DATASET.vae, "signature": signature})
        assert embed(rows, tmp_path / "out", same, SETTINGS, Tools(pooled))["there"] == 11
    assert read_dataset(tmp_path / "out").vae["signature"] == {"encoder.a": [1.001]}


KILLED = """
import sys, time, torch
from dataclasses import replace
from pathlib import Path
from latent_clip.tests.unit.test_training_embed import DATASET, SETTINGS, pooled
from latent_clip.training.embed import Tools, embed
from latent_clip.training.sources import records_of
def slow(pixels):
    time.sleep(0.05)
    return pooled(pixels)
embed(records_of(sys.argv[1]), Path(sys.argv[2]), DATASET, SETTINGS, Tools(slow))
"""


def test_killed_in_the_middle_it_loses_no_row_and_writes_none_twice(folder, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(out)])
    end = time.monotonic() + 120
    while not list(out.glob("*.index.json")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    left, counts = begin(records_of(str(folder)), out, DATASET)
    assert counts["there"] > 0 and not list(out.glob("*.part")), "what it left half written is gone"
    embed(records_of(str(folder)), out, DATASET, SETTINGS, Tools(pooled))
    ids = [sample.id for sample in read_samples(out)]
    assert len(ids) == len(set(ids)) == 11
    assert len(left) + counts["there"] + len(finished(out).skipped) >= 11


def test_shard_that_is_cut_off_is_named(folder, tmp_path):
    tar = write_shard(tmp_path, [Sample("a", {"latent": torch.zeros(1, 3, 4, 4)})])
    tar.write_bytes(tar.read_bytes()[:100])
    with pytest.raises(ShardError, match=tar.name):
        finished(tmp_path)


def test_members_of_a_sample_stand_together(tmp_path):
    samples = [Sample(f"a.b/{n}.png", {"latent": torch.full((1, 3, 4, 4), n)}, ["x y"]) for n in range(3)]
    raw = list(raw_tar_samples(write_shard(tmp_path, samples)))
    assert [decode_sample(members).id for members in raw] == [sample.id for sample in samples]


# ------------------------------------------------------------------------------------------------- spaces of their own


def test_space_of_its_own_travels_and_a_known_one_is_known_by_name():
    assert space_of_dict(json.loads(json.dumps(space_as_dict(SPACE)))) == SPACE
    assert space_of_dict({"name": "sdxl", "channels": 99}) is LATENT_SPACES["sdxl"]
    assert space_of_dict(json.loads(json.dumps(space_as_dict(LATENT_SPACES["wan21"])))) is LATENT_SPACES["wan21"]
    video = LatentSpace("film", 16, 8, 1.0, 0.0, "of a test", video=True)
    assert space_of_dict(json.loads(json.dumps(space_as_dict(video)))) == video
    for wrong in (
        {},
        {"name": "x", "channels": 0, "downscale": 8},
        {"name": "x", "channels": 4, "downscale": 8, "scale": "y"},
    ):
        with pytest.raises(ValueError, match="latent space"):
            space_of_dict(wrong)


def test_latents_that_are_far_from_those_of_the_training_are_told():
    statistics = statistics_of({"channels": json.dumps({"mean": [1.0, 0.0], "std": [2.0, 1.0]})}, 2)
    latents = (
        torch.randn(4, 2, 8, 8) * torch.tensor([2.0, 1.0])[:, None, None] + torch.tensor([1.0, 0.0])[:, None, None]
    )
    assert unlike(latents, statistics) == "" == unlike(latents * 0.3, statistics)
    assert unlike(latents.unsqueeze(2).expand(-1, -1, 3, -1, -1), statistics) == ""
    assert "times what it was" in unlike(latents * 5, statistics)
    assert "standard deviations off" in unlike(latents + 8, statistics)
    for other in ("[]", "null", "4", '{"mean": [1]}'):
        assert statistics_of({"channels": other}, 2) is None
    assert statistics_of({}, 2) is None


@pytest.mark.parametrize(
    "wrong", ["", "[" * 9999, '{"mean": [1, 2], "std": [0, 1]}', '{"mean": [1, 2], "std": [1]}', '{"mean": [1], "std": [1]}',
              '{"mean": [NaN, 1], "std": [1, 1]}', '{"mean": [1e39, 1], "std": [1, 1]}', '{"mean": "12", "std": "34"}']
)  # fmt: skip
def test_statistics_that_are_not_those_of_the_channels_are_refused(wrong):
    with pytest.raises(ValueError, match=r"channel.*Make the file again"):
        statistics_of({"channels": wrong}, 2)
