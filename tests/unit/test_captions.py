"""Captions as people have them: every one is found and kept, whatever its file is called; what matches nothing is counted, or refused."""

import gzip
import json
import os
import sys

import pytest

webdataset = pytest.importorskip("webdataset")

from latent_clip.tests.messy_folder import jpeg, sparse_tar, tar_of  # noqa: E402
from latent_clip.tests.shard_pieces import DATASET, SETTINGS, TOOLS  # noqa: E402
from latent_clip.training import captions as captions_module  # noqa: E402
from latent_clip.training import sources, tars  # noqa: E402
from latent_clip.training.captions import LONGEST_TEXT, captions_of, pair, read_table  # noqa: E402
from latent_clip.training.embed import Tools, embed  # noqa: E402
from latent_clip.training.shards import finished, read_samples  # noqa: E402
from latent_clip.training.sources import CLOSED, ImageRecord, SourceError, picture_of, read_source, records_of  # noqa: E402

PICTURE = jpeg(1)


@pytest.fixture
def folder(tmp_path):
    """pics/a.jpg, pics/b.jpg and pics/sub/c.jpg."""
    root = tmp_path / "pics"
    (root / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (root / name).write_bytes(PICTURE)
    return root


def captions(source, *more):
    return {row.id: row.captions for row in records_of(str(source), *more)}


def table(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


# ------------------------------------------------------------------------------------------------ texts and records


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"caption": "a"}, ["a"]), ({"captions": ["a", "b", "a"]}, ["a", "b"]), ({"caption": "a", "captions": ["b"]}, ["a", "b"]),
        ({"TEXT": "a", "URL": "u"}, ["a"]), ({"prompt": "p", "text": "t"}, ["t"]), ({"caption": "", "prompt": "p"}, ["p"]),
        ({"caption": float("nan")}, []), ({"caption": None, "text": 3}, []), ({"captions": [{"text": "a"}, "b", 1, None]}, ["a", "b"]),
        (["a", " b "], ["a", "b"]), ("a", ["a"]), (3, []), ({}, []), ({"caption": {"text": "a"}}, []),
    ],
    ids=str,
)  # fmt: skip
def test_captions_of_a_record(record, expected):
    assert captions_of(record) == expected


def test_empty_text_hides_no_full_one_and_all_are_kept(folder):
    for name, content in {"a.txt": " \n", "a.json": '{"caption": "from json"}', "b.txt": "one", "b.caption": "two\none", "b.json": '["three"]'}.items():
        (folder / name).write_text(content)
    assert captions(folder) == {"a.jpg": ["from json"], "b.jpg": ["one", "two", "three"], "sub/c.jpg": []}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "красный".encode("cp1251"), "not UTF-8"), ("a.txt", b"a\0b", "no text, but bytes"), ("a.json", b"[" * 100_000, "damaged JSON"),
        ("a.json", b"{", "damaged JSON"), ("a.caption", b"x" * (LONGEST_TEXT + 1), f"longer than {LONGEST_TEXT} bytes"),
    ],
    ids=["cp1251", "bytes", "nested", "cut", "long"],
)  # fmt: skip
def test_text_that_cannot_be_read_is_counted(folder, name, content, reason):
    (folder / name).write_bytes(content)
    (folder / "b.txt").write_text("good")
    source = read_source(str(folder))
    assert [row.captions for row in source.records] == [[], ["good"], []]
    assert f"caption files passed over, {reason}: 1, such as '{name}'" in source.notes


def test_utf16_with_its_mark_is_read(folder):
    (folder / "a.txt").write_bytes("a red circle".encode("utf-16"))
    assert captions(folder)["a.jpg"] == ["a red circle"]


@pytest.mark.parametrize(
    ("pictures", "texts", "expected"),
    [
        (["a.b.jpg"], ["a.b.txt"], {"a.b.jpg": ["a.b.txt"]}),
        (["0.rgb.jpg"], ["0.txt"], {"0.rgb.jpg": ["0.txt"]}),
        (["0.jpg"], ["0.caption.txt"], {"0.jpg": ["0.caption.txt"]}),
        (["0.jpg", "0.cond.jpg"], ["0.txt"], {"0.jpg": ["0.txt"]}),
        (["0.jpg", "0.png"], ["0.txt"], {"0.jpg": ["0.txt"], "0.png": ["0.txt"]}),
        (["a.jpg", "a.png"], ["a.png.txt"], {"a.png": ["a.png.txt"]}),
        (["x.v1.jpg", "x.v2.jpg"], ["x.v1.txt", "x.v2.txt"], {"x.v1.jpg": ["x.v1.txt"], "x.v2.jpg": ["x.v2.txt"]}),
        (["s.d/a.jpg"], ["s.d/a.txt", "s/a.txt", "a.txt"], {"s.d/a.jpg": ["s.d/a.txt"]}),
        (["a.jpg"], ["a.json", "a.caption", "a.txt"], {"a.jpg": ["a.txt", "a.caption", "a.json"]}),
    ],
)
def test_pictures_and_texts_find_each_other(pictures, texts, expected):
    assert pair(pictures, texts) == expected


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("spelled", "picture"),
    [
        ("a.jpg", "a.jpg"), ("./a.jpg", "a.jpg"), ("pics/a.jpg", "a.jpg"), ("@/a.jpg", "a.jpg"), ("sub\\c.jpg", "sub/c.jpg"),
        ("C:\\data\\pics\\sub\\c.jpg", "sub/c.jpg"), ("/home/other/pics/a.jpg", "a.jpg"), ("elsewhere/a.jpg", "a.jpg"), ("c.jpg", "sub/c.jpg"),
        ("../pics/sub/c.jpg", "sub/c.jpg"), ("sub/../a.jpg", "a.jpg"), ("A.JPG", "a.jpg"), ("a", "a.jpg"), ("sub/c", "sub/c.jpg"), ("file://@/a.jpg", "a.jpg"),
    ],
)  # fmt: skip
def test_name_means_its_picture(folder, spelled, picture):
    table(folder / "metadata.jsonl", {"file_name": spelled.replace("@", str(folder)), "text": "it"})
    found = captions(folder)
    assert found.pop(picture) == ["it"] and not any(found.values())


def test_decomposed_letters_are_the_same_name(folder):
    (folder / "cafe\u0301.jpg").write_bytes(PICTURE)
    table(folder / "metadata.jsonl", {"file_name": "caf\u00e9.jpg", "text": "it"})
    assert captions(folder)["cafe\u0301.jpg"] == ["it"]


def test_names_of_two_folders_are_not_mixed_up(folder, tmp_path):
    path = table(
        tmp_path / "all.jsonl", {"path": "train/a.jpg", "text": "of train"}, {"path": "val/a.jpg", "text": "of val"}, {"path": "val/b.jpg", "text": "b"}
    )  # fmt: skip
    source = read_source(str(folder), path)
    assert [row.captions for row in source.records] == [[], ["b"], []]
    assert "all.jsonl: 2 of 3 entries match no picture, such as 'train/a.jpg', 'val/a.jpg'" in source.notes
    assert "all.jsonl: 1 entries match without the folder 'val' in front of their names" in source.notes


def test_address_on_the_web_names_no_picture_here(folder, tmp_path):
    path = table(tmp_path / "all.jsonl", {"url": "https://example.org/a.jpg", "caption": "no"}, {"path": "b.jpg", "caption": "yes"})
    assert captions(folder, path) == {"a.jpg": [], "b.jpg": ["yes"], "sub/c.jpg": []}


def test_several_entries_of_a_picture_are_all_kept(folder):
    table(folder / "metadata.jsonl", *({"file_name": name, "text": text} for name, text in (("a.jpg", "1"), ("./a.jpg", "2"), ("b.jpg", "3"), ("a.jpg", "1"))))
    assert captions(folder) == {"a.jpg": ["1", "2"], "b.jpg": ["3"], "sub/c.jpg": []}


def test_metadata_in_any_folder_and_of_any_kind(folder):
    (folder / "metadata.csv").write_bytes("\ufefffile_name,text\r\na.jpg,\"one, two\"\r\na.jpg,more\r\n".encode())
    table(folder / "sub" / "metadata.jsonl", {"file_name": "c.jpg", "text": "below"})
    assert captions(folder) == {"a.jpg": ["one, two", "more"], "b.jpg": [], "sub/c.jpg": ["below"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "filepath;title\na.jpg;it\n"), ("t.csv", "filepath\ttitle\na.jpg\tit\n"), ("t.tsv", "key\tcaption\na\tit\n"),
        ("t.json", '[{"image": "a.jpg", "caption": "it"}]'), ("t.json", '{"a.jpg": "it"}'), ("t.json", '{"a.jpg": {"caption": "it"}}'),
        ("t.json", '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "it"}]}'),
    ],
)
def test_tables_of_other_tools(folder, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert captions(folder, str(tmp_path / name))["a.jpg"] == ["it"]


def test_named_table_comes_in_place_of_the_others(folder, tmp_path):
    (folder / "a.txt").write_text("beside")
    (folder / "b.txt").write_text("beside")
    path = table(tmp_path / "mine.jsonl", {"file_name": "a.jpg", "text": "mine"}, {"file_name": "b.jpg", "text": ""})
    assert captions(folder, path) == {"a.jpg": ["mine"], "b.jpg": ["beside"], "sub/c.jpg": []}


def test_tables_of_img2dataset(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import Table, parquet

    rows = [{"url": f"https://example.org/{n}.jpg", "key": f"00000000{n}", "caption": f"of {n}"} for n in range(3)]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "00000.parquet")
    (tmp_path / "00000.tar").write_bytes(tar_of({f"00000000{n}.jpg": PICTURE for n in range(3)} | {"000000001.txt": b"own"}))
    found = captions(tmp_path / "*.tar")
    assert found == {"00000.tar/000000000.jpg": ["of 0"], "00000.tar/000000001.jpg": ["own", "of 1"], "00000.tar/000000002.jpg": ["of 2"]}


def test_named_table_is_for_tars_too(tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_of({"a.jpg": PICTURE, "s/b.jpg": PICTURE}))
    path = table(tmp_path / "t.jsonl", {"key": "a", "caption": "one"}, {"file_name": "s/b.jpg", "caption": "two"})
    assert captions(tmp_path / "x.tar", path) == {"x.tar/a.jpg": ["one"], "x.tar/s/b.jpg": ["two"]}


def test_odd_entries_are_counted(folder):
    lines = [json.dumps({"file_name": "a.jpg", "text": "it"})] * 8 + ["{", "[" * 100_000, '{"text": "no name"}', '{"file_name": "b.jpg", "text": NaN}', "3"]
    (folder / "metadata.jsonl").write_text("\n".join([*lines, "x" * (LONGEST_TEXT + 5), '{"file_name": "sub/c.jpg", "text": "last"}']))
    source = read_source(str(folder))
    assert [row.captions for row in source.records] == [["it"], [], ["last"]]
    for note in ("2 entries passed over: damaged JSON", "2 entries passed over: names no picture", "1 entries passed over: no text", "1 entries passed over: longer than"):
        assert any(note in line for line in source.notes), (note, source.notes)


@pytest.mark.parametrize("hits", [0, 1])
def test_table_that_hardly_matches_is_refused(tmp_path, hits):
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(PICTURE)
    table(tmp_path / "metadata.jsonl", *({"file_name": f"{n}.jpg" if n < hits else f"gone{n}.jpg", "text": "it"} for n in range(10)))
    with pytest.raises(SourceError, match=rf"metadata\.jsonl: only {hits} of 10 entries.*'gone\d\.jpg'.*one in 5 entries.*one in 5 pictures"):
        records_of(str(tmp_path))


def test_large_table_of_few_pictures_is_taken(folder, tmp_path):
    """COCO's captions with a part of its pictures."""
    path = table(tmp_path / "coco.jsonl", *({"file_name": f"{n}.jpg", "text": "it"} for n in ["a", "b", *range(100)]))
    source = read_source(str(folder), path)
    assert sum(bool(row.captions) for row in source.records) == 2
    assert "coco.jsonl: 100 of 102 entries match no picture, such as '0.jpg', '1.jpg', '2.jpg'" in source.notes


def test_table_of_something_else_is_refused(folder, tmp_path):
    for name, content in {"t.jsonl": "{\n{\n{\n", "t.csv": "a,b\n1,2\n", "t.parquet": "no", "t.yaml": "a: b", "u.csv": "file_name,text\nя,я\n"}.items():
        (tmp_path / name).write_bytes(content.encode("cp1251"))
        with pytest.raises(SourceError, match=name):
            records_of(str(folder), str(tmp_path / name))


def test_report_counts_and_captions_can_be_required(folder):
    (folder / "a.txt").write_text("one\ntwo")
    assert read_source(str(folder)).notes[0] == "captions: 1 of 3 pictures have one, 2 captions in all"
    source = read_source(str(folder), require_captions=True)
    assert [row.id for row in source.records] == ["a.jpg"] and source.left_out == {"no caption": 2}
    (folder / "a.txt").unlink()
    with pytest.raises(SourceError, match="no picture has a caption"):
        read_source(str(folder), require_captions=True)


# ------------------------------------------------------------------------------------------------------------- tars


@pytest.fixture
def four(tmp_path):
    for number in range(4):
        (tmp_path / f"{number:03}.tar").write_bytes(tar_of({"a.jpg": PICTURE, "a.txt": f"{number}".encode()}))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "009.tar").write_bytes(tar_of({"a.jpg": PICTURE, "a.txt": b"9"}))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [("*.tar", "0123"), ("{000..002}.tar", "012"), ("{000,003}.tar", "03"), ("00[12].tar", "12"), ("@/001.tar::@/003.tar", "13"),
     ("@/{000..001}.tar::@/00[13].tar", "013"), ("*/*.tar", "9")],
)  # fmt: skip
def test_patterns_braces_and_lists(four, source, expected):
    rows = records_of(source.replace("@", str(four)) if "@" in source else f"{four}/{source}")
    assert [row.captions for row in rows] == [[digit] for digit in expected]
    assert all(row.read() == PICTURE for row in rows)


def test_file_with_braces_in_its_name(tmp_path):
    (tmp_path / "{a,b}.tar").write_bytes(tar_of({"a.jpg": PICTURE}))
    assert len(records_of(str(tmp_path / "{a,b}.tar"))) == 1
    with pytest.raises(SourceError, match="more than 1000000 tars"):
        tars.tars_of(str(tmp_path / "{0..99999999}.tar"))


@pytest.mark.parametrize("content", [b"", b"<html>" * 200, tar_of({"a.jpg": PICTURE})[:300]], ids=["empty", "a page", "cut off"])
def test_one_broken_tar_is_passed_over_by_name(four, content):
    (four / "002.tar").write_bytes(content)
    source = read_source(str(four / "*.tar"))
    assert [row.captions for row in source.records] == [["0"], ["1"], ["3"]]
    assert any(note.startswith("002.tar: broken (") and "passed over" in note for note in source.notes)


def test_missing_tar_is_named_and_what_stands_before_a_break_is_used(four):
    whole = tar_of({"a.jpg": PICTURE, "a.txt": b"2", "b.jpg": PICTURE})
    (four / "002.tar").write_bytes(whole[: whole.index(b"b.jpg") + 600])
    source = read_source(str(four / "{000..004}.tar"))
    assert [row.captions for row in source.records] == [["0"], ["1"], ["2"], ["3"]]
    assert any(note.startswith("004.tar: broken (no such file)") for note in source.notes)
    assert any("the 1 pictures before are used" in note for note in source.notes) and source.left_out == {"cut off at the end of its tar": 1}


def test_many_broken_tars_are_refused(four):
    for number in range(3):
        (four / f"{number:03}.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(SourceError, match=r"3 of 4 tars cannot be read.*000\.tar"):
        records_of(str(four / "*.tar"))


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.tar.zst", "x.tar"])
def test_compressed_tars_are_refused_by_name_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(tar_of({"a.jpg": PICTURE})))
    with pytest.raises(SourceError, match=rf"{name}.*(gunzip|bunzip2|unxz|unzstd) -c {name} > x(-plain)?\.tar"):
        records_of(str(tmp_path / name))


def test_tar_is_named_where_a_folder_holds_nothing_else(four):
    with pytest.raises(SourceError, match=r"Its tars are read as .*/\*\.tar"):
        records_of(str(four))
    (four / "a.jpg").write_bytes(PICTURE)
    assert "not read: 5 .tar files" in read_source(str(four)).notes


def test_members_that_lie_about_their_size_are_not_read(tmp_path):
    (tmp_path / "x.tar").write_bytes(sparse_tar(3 << 30))
    source = read_source(str(tmp_path / "x.tar"))
    assert [row.captions for row in source.records] == [[]]
    assert "caption files passed over, sparse in its tar: 1, such as 'x.tar/a.txt'" in source.notes


def test_odd_members_are_counted(tmp_path):
    content = tar_of({"a.jpg": PICTURE, "e.jpg": b"", "a.txt": b"x" * (LONGEST_TEXT + 1), "a.json": b"[" * 100_000, "._a.jpg": b"x"})
    (tmp_path / "x.tar").write_bytes(content[:-1024].rstrip(b"\0") + bytes(-len(content[:-1024].rstrip(b"\0")) % 512) + tar_of({"a.jpg": PICTURE}))
    source = read_source(str(tmp_path / "x.tar"))
    assert [row.id for row in source.records] == ["x.tar/a.jpg"]
    assert source.left_out == {"no picture": 1, "named twice in its tar": 1}
    assert {note.partition(":")[0] for note in source.notes[1:]} == {
        f"caption files passed over, longer than {LONGEST_TEXT} bytes", "caption files passed over, damaged JSON",
    }  # fmt: skip


def test_header_that_claims_gigabytes_is_a_broken_tar(tmp_path):
    import tarfile

    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    whole = tar_of({"a.jpg": PICTURE})
    (tmp_path / "x.tar").write_bytes(whole[: 512 + -(-len(PICTURE) // 512) * 512] + info.tobuf())
    source = read_source(str(tmp_path / "x.tar"))
    assert [row.id for row in source.records] == ["x.tar/a.jpg"]
    assert any("broken (a header of 3221225472 bytes); the 1 pictures before are used" in note for note in source.notes)


# ---------------------------------------------------------------------------------------------------------- folders


def test_linked_folders_are_read_once_and_lost_links_counted(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.jpg").write_bytes(PICTURE)
    (folder / "more").symlink_to(tmp_path / "other")
    (folder / "circle").symlink_to(folder)
    (folder / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    source = read_source(str(folder))
    assert [row.id for row in source.records] == ["a.jpg", "b.jpg", "more/d.jpg", "sub/c.jpg"] and source.left_out == {CLOSED: 1}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such names")
def test_names_that_are_no_utf8_have_ids_that_can_be_written(folder):
    (folder / os.fsdecode(b"\xe9.jpg")).write_bytes(PICTURE)
    ids = [row.id for row in records_of(str(folder))]
    assert "\\udce9.jpg" in ids and json.loads(json.dumps(ids)) == ids and "".join(ids).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_is_no_picture(folder):
    os.mkfifo(folder / "pipe.jpg")
    source = read_source(str(folder))
    assert len(source.records) == 3 and source.left_out == {CLOSED: 1}


def test_huge_file_is_not_read(folder):
    with (folder / "a.jpg").open("wb") as file:
        file.truncate(3 << 30)
    assert picture_of(records_of(str(folder))[0]) == "too large a file"
    assert picture_of(ImageRecord("gone", str(folder / "gone.jpg"))) == CLOSED


def test_source_that_vanishes_stops_the_run(folder, tmp_path):
    from latent_clip.training import embed as module
    from latent_clip.training.embed import Settings

    rows = [ImageRecord(f"{n}.jpg", str(tmp_path / "gone" / f"{n}.jpg")) for n in range(module.MOST_CLOSED + 20)]
    dataset = module.Dataset({"name": "x", "channels": 3, "downscale": 8}, {"name": "v", "sha256": "0"}, {"names": ["centre"], "side": 32})
    with pytest.raises(SourceError, match="pictures in a row cannot be opened, the last"):
        embed(rows, tmp_path / "out", dataset, Settings(side=32), Tools(lambda pixels: {}))
    assert not list((tmp_path / "out").glob("*.index.json")), "they are tried again"

# ------------------------------------------------------------------------------------------------ sizes that tables claim


def test_one_long_text_named_a_thousand_times_takes_no_memory(folder):
    resource = pytest.importorskip("resource")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000 + [1] * 3), pyarrow.array(["x" * (4 << 20), "short"]))
    names = ["a.jpg"] * 1000 + ["a.jpg", "b.jpg", "sub/c.jpg"]
    parquet.write_table(pyarrow.table({"file_name": names, "text": texts}), folder / "metadata.parquet")
    table, peak = folder / "metadata.parquet", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(read_table(str(table), sources._open))
    assert [len(one[1]) for one in found if isinstance(one, tuple)] == [1, 1, 1] and len(found) == 1003
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000, "kB; each text on its own would take 4 GB"


@pytest.mark.parametrize(("bound", "value"), [("MOST_ROWS", 2), ("LARGEST_GROUP", 10)])
def test_parquet_that_is_large_when_it_is_unpacked_is_refused(folder, monkeypatch, bound, value):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"file_name": ["a.jpg", "b.jpg", "sub/c.jpg"], "text": ["a", "b", "c"]}), folder / "metadata.parquet")
    assert captions(folder)["a.jpg"] == ["a"]
    monkeypatch.setattr(captions_module, bound, value)
    with pytest.raises(SourceError, match=r"metadata\.parquet: 3 rows"):
        read_source(str(folder))


def test_lists_of_captions_in_a_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"key": [1, 2, 3], "captions": [["one", "two"], None, [f"{n}" for n in range(2000)]], "caption": [None, None, "c"]}
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (folder / name).write_bytes(PICTURE)
    parquet.write_table(pyarrow.table(rows), folder / "metadata.parquet")
    source = read_source(str(folder))
    assert {row.id: row.captions for row in source.records if row.captions} == {"1.jpg": ["one", "two"]}
    assert "metadata.parquet: 1 entries passed over: more than 1000 captions" in source.notes


def test_json_table_of_many_small_parts_is_refused_before_it_is_read(folder, monkeypatch):
    path = folder / "all.json"
    path.write_text("[" + "[]," * 1000 + "[]]")
    monkeypatch.setattr(captions_module, "MOST_PARTS", 1000)
    with pytest.raises(SourceError, match="more than 1000 lists"):
        read_source(str(folder), str(path))


def test_caption_of_a_table_is_no_longer_than_one_beside_a_picture(folder):
    path = folder / "all.json"
    path.write_text(json.dumps([{"file_name": "a.jpg", "text": "x" * (LONGEST_TEXT + 1)}, {"file_name": "b.jpg", "text": "b"}, {"file_name": "sub/c.jpg", "text": "c"}]))
    source = read_source(str(folder), str(path))
    assert [row.captions for row in source.records] == [[], ["b"], ["c"]] and any("longer than" in note for note in source.notes)


def test_picture_that_cannot_be_opened_is_tried_again_by_the_next_run(folder, tmp_path):
    rows = records_of(str(folder))
    (folder / "b.jpg").rename(tmp_path / "b.jpg")  # a disk that is away for a moment
    counts = embed(rows, tmp_path / "out", DATASET, SETTINGS, TOOLS)
    assert counts["written"] == 2 and counts[CLOSED] == 1 and finished(tmp_path / "out").skipped == {}
    (tmp_path / "b.jpg").rename(folder / "b.jpg")
    assert embed(rows, tmp_path / "out", DATASET, SETTINGS, TOOLS) == {"there": 2, "written": 1}
    assert {sample.id for sample in read_samples(tmp_path / "out")} == {"a.jpg", "b.jpg", "sub/c.jpg"}


def test_latents_that_are_not_finite_are_left_out_and_counted(folder, tmp_path):
    def encode(pixels):  # as a VAE in float16 does with some pictures
        latents = TOOLS.encoder(pixels)["latent"]
        latents[1, 0, 0, 0] = 1e9
        return {"latent": latents}

    counts = embed(records_of(str(folder)), tmp_path / "out", DATASET, SETTINGS, Tools(encode))
    assert counts == {"there": 0, "written": 2, (reason := "the VAE made numbers that are not finite"): 1}
    assert [sample.id for sample in read_samples(tmp_path / "out")] == ["a.jpg", "sub/c.jpg"]
    assert finished(tmp_path / "out").skipped == {"b.jpg": reason}
