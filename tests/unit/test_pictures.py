"""The one reader of pictures: every mode the same for embed, calibrate and evaluate, within the memory, whatever a file raises."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from latent_clip.evaluation import EvaluationError
from latent_clip.evaluation.pictures import read_pictures
from latent_clip.evaluation.scorers import read_picture
from latent_clip.models import pictures
from latent_clip.models.pictures import Skipped, read_upright
from latent_clip.tests.messy_folder import BAD_EXIF, EXIF, jpeg, large_png, noise, saved, sparse_tar, tar_of


def with_exif(exif: bytes) -> bytes:
    return jpeg(1).replace(b"\xff\xdb", b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + b"\xff\xdb", 1)


@pytest.mark.parametrize("edits", BAD_EXIF, ids=str)
def test_bad_exif_costs_no_picture(edits):
    exif = bytearray(EXIF)
    for place, value in edits.items():
        exif[place] = value
    assert read_upright(with_exif(bytes(exif))).size in ((64, 48), (48, 64))


def test_where_the_exif_cannot_be_read_the_picture_stays_as_it_lies(monkeypatch):
    assert read_upright(with_exif(EXIF)).size == (48, 64)

    def broken(self):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert read_upright(with_exif(EXIF)).size == (64, 48)


def test_all_orientations_are_pillows_own():
    from PIL import ImageOps

    picture = noise(4)
    for noted in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = noted
        content = saved(picture, "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert np.array_equal(np.asarray(read_upright(content)), np.asarray(expected)), noted


@pytest.mark.parametrize("error", [RuntimeError, struct.error, ZeroDivisionError, RecursionError, KeyError, AttributeError])
def test_whatever_a_decoder_raises_the_picture_is_damaged(monkeypatch, error):
    def load(self):
        raise error("odd")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load, raising=False)
    with pytest.raises(Skipped, match="damaged"):
        read_upright(saved(noise(1), "PNG"))


def test_drawing_that_starts_a_program_is_no_picture():
    with pytest.raises(Skipped, match="no picture"):
        read_upright(saved(noise(1), "EPS"))


def test_sixteen_bits_and_alpha_are_the_same_for_evaluate(tmp_path):
    deep = saved(Image.fromarray(np.full((40, 40), 32768, np.uint16)), "PNG")
    clear = saved(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG")
    for name, content, value in (("deep", deep, 128), ("clear", clear, 255)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(content)
        assert abs(read_picture(tmp_path / name / "a.png").mean() * 255 - value) < 1
    means = [np.asarray(image).mean() for image, _ in read_pictures(tmp_path)]
    assert means == pytest.approx([255, 128], abs=1)


MEASURE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from latent_clip.models.pictures import read_upright
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = read_upright(content).size
print(*size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def rgba_png(side: int) -> bytes:
    """The widest mode: a grey PNG's header says RGBA, lines four times as long."""
    import zlib

    packer, line = zlib.compressobj(9), bytes(1 + 4 * side)
    packed = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    parts = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_largest_picture_takes_less_than_a_gigabyte(tmp_path):
    """It took 3.4 GB: 178.9 megapixels with alpha, a file of 0.7 MB."""
    (tmp_path / "a.png").write_bytes(rgba_png(13377))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "a.png")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    width, height, megabytes = map(int, done.stdout.split())
    assert min(width, height) >= pictures.ENOUGH and megabytes < 1000


def test_what_a_decoder_would_take_counts(monkeypatch):
    """WebP's decoder takes 16 bytes for a pixel, others half of that."""
    monkeypatch.setattr(pictures, "MEMORY", 64 * 48 * 15)
    assert read_upright(saved(noise(1), "PNG")).size == (64, 48)
    with pytest.raises(Skipped, match="too large"):
        read_upright(saved(noise(1), "WEBP"))


def test_large_picture_is_reduced_and_keeps_its_colours(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 1000)
    monkeypatch.setattr(pictures, "ENOUGH", 20)
    picture = Image.new("RGB", (130, 91))
    picture.paste((250, 10, 20), (0, 0, 65, 91))
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.new("L", (130, 91), 0))
    for content, left, right in (
        (saved(picture, "PNG"), (250, 10, 20), (0, 0, 0)), (saved(picture, "JPEG", quality=95), (250, 10, 20), (0, 0, 0)),
        (saved(picture.quantize(4), "PNG"), (250, 10, 20), (0, 0, 0)), (saved(alpha, "PNG"), (255, 255, 255), (255, 255, 255)),
        (saved(Image.fromarray(np.full((91, 130), 32768, np.uint16)), "PNG"), (128,) * 3, (128,) * 3),
    ):  # fmt: skip
        read = read_upright(content)
        assert 20 <= min(read.size) < 46 and read.width / read.height == pytest.approx(130 / 91, rel=0.05)
        middle = read.height // 2
        for place, expected in (((4, middle), left), ((read.width - 5, middle), right)):
            assert np.abs(np.subtract(read.getpixel(place), expected)).max() < 12
    assert read_upright(large_png(40, 9)).size == (20, 20)


def test_long_narrow_picture_keeps_its_width(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE", 1000)
    assert read_upright(saved(noise(2, 300, 30), "PNG")).size == (300, 30)


# ----------------------------------------------------------------------------------------------- labelled pictures


def classes(root, good=12):
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(good):
            (root / name / f"{number}.png").write_bytes(saved(noise(number), "PNG"))
    return root


def test_one_broken_picture_is_counted_and_passed_over(tmp_path):
    (classes(tmp_path) / "cat" / "bad.png").write_bytes(b"<html>")
    (tmp_path / "dog" / "half.png").write_bytes(saved(noise(1), "PNG")[:500])
    data = read_pictures(tmp_path)
    assert [label for _, label in data] == [0] * 12 + [1] * 12
    assert data.left_out == {"no picture": 1, "damaged": 1}
    assert len(list(data)) == 24 and data.left_out.total() == 2, "a second pass counts anew"


def test_many_broken_pictures_are_another_data_set(tmp_path):
    for number in range(4):
        (classes(tmp_path) if not number else tmp_path).joinpath("cat", f"bad{number}.png").write_bytes(b"<html>")
    with pytest.raises(EvaluationError, match=r"4 of 28 pictures cannot be read.*bad0\.png: no picture.*one in ten"):
        list(read_pictures(tmp_path))


def test_files_beside_the_class_folders_are_no_classes(tmp_path):
    (classes(tmp_path) / "classnames.txt").write_text("a cat\na dog\n")
    (tmp_path / "0.png").write_bytes(saved(noise(1), "PNG"))
    (tmp_path / "cat" / "._0.png").write_bytes(b"what macOS writes beside a file")
    assert len(list(read_pictures(tmp_path))) == 24
    assert read_pictures(tmp_path).classes == ["a cat", "a dog"]


def web_dataset(root, members: dict | bytes):
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("a\nb\nc")
    (root / "zeroshot_classification_templates.txt").write_text("{c}")
    (root / "test" / "0.tar").write_bytes(members if isinstance(members, bytes) else tar_of(members))
    return read_pictures(root)


def test_dotted_keys_of_both_kinds(tmp_path):
    picture = jpeg(1)
    last = {"x.v1.jpg": picture, "x.v1.cls": b"1", "x.v2.jpg": picture, "x.v2.cls": b"2"}
    assert [label for _, label in web_dataset(tmp_path / "last", last)] == [1, 2]
    first = {"0.rgb.jpg": picture, "0.cls": b"2", "1.jpg": picture, "1.mask.npy": b"x", "1.cls": b"0"}
    assert [label for _, label in web_dataset(tmp_path / "first", first)] == [2, 0]


def test_sizes_in_a_tar_are_not_believed(tmp_path):
    lying = sparse_tar().replace(b"a.txt", b"a.cls", 1)
    data = web_dataset(tmp_path, _with_right_sum(lying))
    assert not list(data) and data.left_out == {"has .jpg, .cls, expected a picture and a number in .cls": 1}


def _with_right_sum(tar: bytes) -> bytes:
    content = bytearray(tar)
    at = content.index(b"a.cls")
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)
