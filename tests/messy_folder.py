"""A folder of about 220 files as people have them: every oddity of pictures and captions, and what embed should make of it.

    python -m latent_clip.tests.messy_folder FOLDER

writes FOLDER/pictures (a source, with class folders on the first level) and FOLDER/tars (another: tars/*.tar), and prints what to expect.
"""

import hashlib
import io
import json
import os
import struct
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

TIFF_HEADER = "4578696600004d4d002a00000008"
EXIF = bytes.fromhex(
    TIFF_HEADER + "0005010f0002000000080000004a011200030000000100060000011a0005000000010000005201320002000000140000005a87690004000000010000006e"
    "0000000073616d73756e67000000004800000001323032343a31323a31332031373a30343a3239000004829a00030000000200010032920100030000000200a90064"
    "920400030000000200000001927c0001000000030001020000000000"
)  # of a phone that lay on its side (orientation 6)
BAD_EXIF = ({17: 0}, {43: 2}, {41: 29}, {14: 0, 130: 69, 17: 84}, {43: 1}, {116: 0, 145: 16})  # byte → value; Pillow raises six kinds of errors
GNU_SPARSE = 3 << 30  # bytes that a caption of a few bytes claims


@dataclass
class Messy:
    """The folder, and what is right for it.

    Attributes:
        captions: of each usable picture by its id. left_out: the others, by reason.
    """

    root: Path
    captions: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def captioned(self) -> int:
        return sum(bool(captions) for captions in self.captions.values())

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def picture(self, name: str, content: bytes | None = None, *captions: str, reason: str = "") -> None:
        self.write(name, jpeg(len(self.captions)) if content is None else content)
        if reason:
            self.left_out[reason] += 1
        else:
            self.captions[name] = list(captions)


def noise(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    rng = np.random.default_rng(seed)
    flat = rng.integers(0, 256, (1, 1, 3)) + rng.integers(-40, 40, (height, width, 3))
    return Image.fromarray(flat.clip(0, 255).astype(np.uint8))


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0, exif: bytes = b"") -> bytes:
    return saved(noise(seed), "JPEG", **({"exif": exif} if exif else {}))


def large_png(side: int, colour: int = 0) -> bytes:
    """A grey PNG of side × side pixels that was never in memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer, line = zlib.compressobj(9), bytes([0]) + bytes([colour]) * side
    packed = b"".join([*(packer.compress(line) for _ in range(side)), packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def make(folder: Path) -> Messy:
    """Write `folder`/pictures; returns what to expect of it."""
    messy = Messy(folder / "pictures")
    for part in (_photos, _modes, _damaged, _names, _tables, _odd_texts):
        part(messy)
    return messy


def _photos(messy: Messy) -> None:
    for number in range(100):
        name, text = f"photos/img_{number:03}", f"photo {number}"
        beside = {".txt": text, ".caption": text, ".json": json.dumps({"prompt": text, "captions": [], "seed": 3})}
        suffix = list(beside)[0 if number < 60 else 1 if number < 80 else 2]
        messy.picture(f"{name}{'.JPG' if number % 10 == 0 else '.jpg'}", None, text)
        messy.write(f"{name}{suffix}", beside[suffix])
        if number >= 90:
            messy.write(f"{name}.txt", " \n")  # an empty text hides no full one
    for number, edits in enumerate(BAD_EXIF):
        exif = bytearray(EXIF)
        for place, value in edits.items():
            exif[place] = value
        messy.picture(f"exif/phone_{number}.jpg", jpeg(900).replace(b"\xff\xdb", b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + b"\xff\xdb", 1))
    messy.picture("exif/good.jpg", jpeg(901, EXIF))


def _modes(messy: Messy) -> None:
    picture, grey = noise(1000), np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    frames = [noise(n) for n in (1001, 1002)]
    alpha = picture.convert("RGBA")
    alpha.putalpha(128)
    kinds = {
        "16bit.png": saved(Image.fromarray(grey.astype(np.uint16)), "PNG"), "float.tif": saved(Image.fromarray(grey.astype(np.float32)), "TIFF"),
        "cmyk.jpg": saved(picture.convert("CMYK"), "JPEG"), "alpha.png": saved(alpha, "PNG"), "grey_alpha.png": saved(alpha.convert("LA"), "PNG"),
        "palette.png": saved(picture.quantize(16), "PNG", transparency=3), "bits.tif": saved(picture.convert("1"), "TIFF"),
        "animated.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "two.jpg": saved(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "web.jfif": jpeg(1003), "old.jpe": jpeg(1004), "really_a_png.jpg": saved(picture, "PNG"), "windows.bmp": saved(picture, "BMP"),
        "large.png": large_png(9000, 200), "panorama.jpg": saved(noise(1005, 3000, 20), "JPEG"),
    }  # fmt: skip
    for name, content in kinds.items():
        messy.picture(f"modes/{name}", content)


def _damaged(messy: Messy) -> None:
    whole = jpeg(1100)
    messy.picture("damaged/zero.jpg", b"", reason="no picture")
    messy.picture("damaged/error_404.jpg", b"<html>404</html>" * 20, reason="no picture")
    messy.picture("damaged/half.jpg", whole[: len(whole) // 2], reason="damaged")
    messy.picture("damaged/icon.png", saved(noise(0, 8, 8), "PNG"), reason="too small")
    messy.picture("damaged/huge.png", large_png(13500), reason="too large")
    messy.picture("damaged/drawing.png", saved(noise(1101), "EPS"), reason="no picture")
    if "AVIF" in Image.registered_extensions().values():
        avif = saved(noise(1102), "AVIF")
        data = avif.index(b"mdat") + 4  # Pillow raises RuntimeError where the first bytes of it are wrong
        messy.picture("damaged/wrong.avif", avif[:data] + bytes(8) + avif[data + 8 :], reason="damaged")
    messy.picture("damaged/good.png", saved(noise(1103), "PNG"))
    messy.write("damaged/IMG_0001.heic", b"not read")
    messy.write("damaged/.hidden.png", saved(noise(1), "PNG"))
    messy.write("damaged/._good.png", b"what macOS writes beside a file")


def _names(messy: Messy) -> None:
    names = ["v1.2.final.jpg", "кошка.jpg", "cafe\u0301 🐈.jpg", "-rf.jpg", "100% #1 {a}.jpg", "[x].jpg", "'; quote.jpg", "x" * 200 + ".jpg"]
    if os.name == "posix":
        names += ["two\nlines.jpg", "back\\slash.jpg", "C:drive.jpg", 'say "hi" *?.jpg']
    for name in names:
        messy.picture(f"names/{name}", None, f"caption of {names.index(name)}")
        messy.write(f"names/{name[:-4]}.txt", f"caption of {names.index(name)}")
    if sys.platform == "linux":
        (messy.root / os.fsdecode(b"names/latin_\xe9.jpg")).write_bytes(jpeg(5))
        messy.captions["names/latin_\\udce9.jpg"] = []


def _tables(messy: Messy) -> None:
    spellings = ("{0}", "./{0}", str(messy.root / "table" / "{0}"), "table/{0}", ".\\{0}", "C:\\data\\table\\{0}", "../table/{0}")
    entries = []
    for number in range(21):
        name, texts = f"{number:02}.jpg", [f"{number} first", f"{number} second"]
        messy.picture(f"table/{name}", None, *texts)
        spelled = spellings[number % len(spellings)].format(name)
        entries += [json.dumps({"file_name": spelled, "text": text}) for text in texts]
    messy.picture("table/nobody.jpg")
    entries += [json.dumps({"file_name": f"gone_{n}.jpg", "text": "of none"}) for n in range(5)]
    entries += ["{not json", "[" * 200_000, '{"file_name": "nobody.jpg", "text": NaN}', '{"text": "no name"}', ""]
    messy.write("table/metadata.jsonl", "\n".join(entries))
    rows = ["file_name,text"]
    for number in range(5):
        messy.picture(f"csv/{number}.png", saved(noise(number), "PNG"), f"a, {number}", f"b {number}")
        rows += [f'{number}.png,"a, {number}"', f"{number}.png,b {number}"]
    messy.write("csv/metadata.csv", "\ufeff" + "\r\n".join(rows))
    from pyarrow import Table, parquet

    keys = [f"00000000{number}" for number in range(5)]
    for key in keys:
        messy.picture(f"img2dataset/00000/{key}.jpg", None, f"of {key}")
    table = Table.from_pylist([{"url": f"https://example.org/{n}.jpg", "key": key, "caption": f"of {key}"} for n, key in enumerate(keys)])
    parquet.write_table(table, messy.root / "img2dataset" / "00000.parquet")
    messy.write("img2dataset/00000_stats.json", "{}")


def _odd_texts(messy: Messy) -> None:
    odd = {
        "cp1251.txt": "красный круг".encode("cp1251"), "bytes.txt": b"a\0b", "long.txt": b"x" * (2**20 + 1), "nested.json": b"[" * 200_000,
        "number.json": b'{"caption": NaN}', "utf16.txt": "a red circle".encode("utf-16"), "two.txt": b"one\r\n\r\n two \r\n",
        "list.json": b'{"captions": ["one", {"text": "two"}, 3, null]}', "name.jpg.txt": b"by its whole name",
    }  # fmt: skip
    found = {"utf16": ["a red circle"], "two": ["one", "two"], "list": ["one", "two"], "name": ["by its whole name"]}
    for name, content in odd.items():
        stem = name.partition(".")[0]
        messy.write(f"texts/{name}", content)
        messy.picture(f"texts/{stem}.jpg", None, *found.get(stem, []))
    messy.write("README.md", "not a caption")
    messy.write("Thumbs.db", b"\0\1")


def make_tars(folder: Path) -> Messy:
    """Write `folder`/tars; returns what to expect of its *.tar."""
    messy = Messy(folder / "tars")

    def sample(key: str, **texts: bytes) -> dict[str, bytes]:
        return {f"{key}.jpg": jpeg(len(key)), **{f"{key}.{suffix}": content for suffix, content in texts.items()}}

    def expect(tar: str, members: dict[str, bytes], captions: dict[str, list[str]]) -> None:
        messy.write(tar, tar_of(members))
        messy.captions |= {f"{tar}/{name}": texts for name, texts in captions.items()}

    for number in range(3):
        members, captions = {}, {}
        for each in range(4):
            key = f"{number:05}{each:04}"
            about = json.dumps({"caption": f"of {key}", "url": "https://example.org/a.jpg", "key": key}).encode()
            members |= sample(key, txt=b"" if each % 2 else f"of {key}".encode(), json=about)
            captions[f"{key}.jpg"] = [f"of {key}"]
        expect(f"{number:05}.tar", members, captions)
    dotted = {**sample("img.v1", txt=b"last dot"), "0.cond.jpg": jpeg(7), "0.txt": b"first dot", "./sub/a.JPG": jpeg(8), "./sub/a.caption": b"sub"}
    expect("dotted.tar", dotted, {"img.v1.jpg": ["last dot"], "0.cond.jpg": ["first dot"], "./sub/a.JPG": ["sub"]})
    messy.write("sparse.tar", sparse_tar())
    messy.captions["sparse.tar/a.jpg"] = []
    messy.write("00009.tar", b"<html>404</html>" * 100)
    whole = tar_of(sample("cut0", txt=b"kept") | sample("cut1"))
    messy.write("cut.tar", whole[: whole.index(b"cut1.jpg") + 700])
    messy.captions["cut.tar/cut0.jpg"] = ["kept"]
    messy.left_out["cut off at the end of its tar"] += 1
    messy.write("packed/x.tar.gz", tar_of(sample("0"), "w:gz"))
    return messy


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def sparse_tar(size: int = GNU_SPARSE) -> bytes:
    """A picture, and a caption of five letters that claims `size` bytes."""
    content = jpeg(3)
    info = tarfile.TarInfo("a.jpg")
    info.size = len(content)
    first = info.tobuf(format=tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    info = tarfile.TarInfo("a.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    head[386:398], head[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
    head[483:495] = b"%011o\0" % size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return first + bytes(head) + b"hello" + bytes(507) + bytes(1024)


def hashes(folder: Path) -> dict[str, str]:
    """Content of every file, by name."""
    return {
        os.fsencode(path.relative_to(folder)).hex(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


if __name__ == "__main__":
    for part in (make(Path(sys.argv[1])), make_tars(Path(sys.argv[1]))):
        print(f"{part.root}: {len(part.captions)} pictures, {part.captioned} with captions; left out: {dict(part.left_out)}")
