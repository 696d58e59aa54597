"""From annotation files and images to prepared data: what is written, for every kind of source."""

import io
import json
import shutil
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelbert.data.dividing import hash_share
from pixelbert.data.prepare import prepare, survey
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError


def records(data, split):
    """(id, image id, text) of every record, in order."""
    part = data.split(split)
    return [
        (part.record_id(r), part.image_id(i), part.text(r)) for i in range(part.num_images) for r in part.records_of(i)
    ]


def bytes_of(data, split):
    part = data.split(split)
    return {part.image_id(i): part.image(i).read() for i in range(part.num_images)}


def write_csv(path, rows, header="image,text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def photos(tmp_path, tools):
    """A folder of ten photos 0.jpg ... 9.jpg."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.jpg").write_bytes(tools.picture(i))
    return folder


def test_a_karpathy_folder_with_tars(flickr, tmp_path, tools):
    data = prepare("karpathy", [flickr], tmp_path / "out")
    assert {name: (c["images"], c["records"]) for name, c in data.info["splits"].items()} == {
        "train": (6, 12),
        "val": (2, 4),
    }
    assert records(data, "train")[:3] == [
        ("0", "train0_ab.jpg", "train0_ab.jpg one"),
        ("1", "train0_ab.jpg", "train0_ab.jpg two"),
        ("10", "train1_ab.jpg", "train1_ab.jpg one"),
    ]
    assert bytes_of(data, "val") == {f"val{k}_ab.jpg": tools.picture(k + 20) for k in range(2)}
    train = data.split("train")
    assert train.image_of.tolist() == [i // 2 for i in range(12)]
    assert train.first_record.tolist() == [0, 2, 4, 6, 8, 10]
    assert [train.source(0), train.target(0), train.second_image(0)] == ["flickr8k", {}, -1]
    assert data.task == "pairs"
    assert (tmp_path / "out" / "bad_rows.jsonl").read_text() == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bad_rows.jsonl", "prepared.json", "train", "val"]


def test_the_same_input_gives_the_same_fingerprint_wherever_it_lies(flickr, tmp_path, tools):
    first = prepare("karpathy", [flickr], tmp_path / "a")
    assert prepare("karpathy", [flickr / "dataset_flickr8k.json"], tmp_path / "b").fingerprint == first.fingerprint
    for name in ("train/records.arrow", "train/images.arrow", "val/records.arrow"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shutil.move(flickr, tmp_path / "moved")
    assert prepare("karpathy", [tmp_path / "moved"], tmp_path / "c").fingerprint == first.fingerprint
    path = tmp_path / "moved" / "dataset_flickr8k.json"
    path.write_text(path.read_text().replace("train0_ab.jpg one", "train0_ab.jpg 1"))
    assert prepare("karpathy", [tmp_path / "moved"], tmp_path / "d").fingerprint != first.fingerprint


def test_own_shards_can_be_moved_without_the_sources(flickr, tmp_path):
    before = bytes_of(prepare("karpathy", [flickr], tmp_path / "plain"), "train")
    prepare("karpathy", [flickr], tmp_path / "out", shards=True)
    shutil.rmtree(flickr)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    data = PreparedData(tmp_path / "elsewhere")
    assert bytes_of(data, "train") == before
    assert data.split("train").image(0).file == str(tmp_path / "elsewhere" / "train" / "images-00000.tar")


def test_images_in_another_folder_and_in_a_tar(photos, tmp_path, tools):
    table = write_csv(tmp_path / "tables" / "mine.csv", ["0.jpg,zero", "sub/1.jpg,one", "t.jpg,tar"])
    tar = tools.write_tar(tmp_path / "more.tar", {"t.jpg": tools.picture(50)})
    data = prepare("csv", [table], tmp_path / "out", images=[photos, tar])
    assert bytes_of(data, "train") == {
        "0.jpg": tools.picture(0),
        "sub/1.jpg": tools.picture(1),
        "t.jpg": tools.picture(50),
    }


def test_rows_of_one_image_are_brought_together_in_order(photos, tmp_path):
    write_csv(photos / "mine.csv", ["3.jpg,a", "1.jpg,b", "3.jpg,c", "2.jpg,d", "1.jpg,e", "./3.jpg,f"])
    data = prepare("csv", [photos / "mine.csv"], tmp_path / "out")
    assert [(i, t) for _, i, t in records(data, "train")] == [
        ("3.jpg", "a"), ("3.jpg", "c"), ("3.jpg", "f"), ("1.jpg", "b"), ("1.jpg", "e"), ("2.jpg", "d")
    ]  # fmt: skip


@settings(max_examples=25)
@given(rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["train", "val", "test"])), min_size=1, max_size=30))
def test_every_row_arrives_once_in_its_split(tmp_path_factory, rows):
    tmp_path = tmp_path_factory.mktemp("rows")
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"not looked at")
    table = [f"{image}.jpg,text {k},{split}" for k, (image, split) in enumerate(rows)]
    write_csv(tmp_path / "mine.csv", table, "image,text,split")
    data = prepare("csv", [tmp_path / "mine.csv"], tmp_path / "out", check_images="none")
    for split in ("train", "val", "test"):
        expected = [(f"{image}.jpg", f"text {k}") for k, (image, s) in enumerate(rows) if s == split]
        if not expected:
            assert split not in data.info["splits"]
            continue
        found = [(image, text) for _, image, text in records(data, split)]
        assert Counter(found) == Counter(expected)
        assert len(found) == data.split(split).num_records
        assert data.split(split).num_images == len({image for image, _ in expected})


def test_restval_is_its_own_split_or_joins_train(tmp_path, tools):
    images = [
        tools.karpathy_image(f"{i}.jpg", split, ["x"], i, filepath="val2014", cocoid=i)
        for i, split in enumerate(["train", "restval", "val"])
    ]
    tools.write_json(tmp_path / "annotations" / "dataset_coco.json", {"images": images})
    for i in range(3):
        (tmp_path / "val2014").mkdir(exist_ok=True)
        (tmp_path / "val2014" / f"{i}.jpg").write_bytes(tools.picture(i))
    apart = prepare("karpathy", [tmp_path / "annotations" / "dataset_coco.json"], tmp_path / "a")
    assert list(apart.info["splits"]) == ["train", "restval", "val"]
    merged = prepare("karpathy", [tmp_path], tmp_path / "b", merge_restval=True)
    assert [c["records"] for c in merged.info["splits"].values()] == [2, 1]
    for data in (apart, merged):
        row = next(r for r in data.info["table1"] if r["task"] == "pretraining" and r["dataset"] == "COCO")
        assert (row["images"], row["texts"], row["paper_images"], row["paper_texts"]) == (2, 2, "106K", "533K")


@pytest.fixture
def sources(tmp_path, tools):
    """COCO by a Karpathy file and by captions, and Visual Genome with photos of COCO val, train and of neither."""
    coco, vg = tmp_path / "coco", tmp_path / "vg"
    entry = tools.karpathy_image
    images = [
        entry("COCO_train2014_000000000009.jpg", "train", ["nine"], 1, filepath="train2014", cocoid=9),
        entry("COCO_val2014_000000000139.jpg", "val", ["room"], 2, filepath="val2014", cocoid=139),
    ]
    tools.write_json(coco / "dataset_coco.json", {"images": images})
    captions = [{"id": 7, "image_id": 9, "caption": "nine again"}, {"id": 1, "image_id": 9, "caption": "known id"}]
    listed = [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}]
    tools.write_json(coco / "captions_train2014.json", {"images": listed, "annotations": captions})
    for k, image in enumerate(images):
        (coco / image["filepath"]).mkdir(parents=True)
        (coco / image["filepath"] / image["filename"]).write_bytes(tools.picture(k))
    (vg / "VG_100K").mkdir(parents=True)
    for i in (1, 2, 3):
        (vg / "VG_100K" / f"{i}.jpg").write_bytes(tools.picture(100 + i))
    regions = [{"id": i, "regions": [{"region_id": i, "image_id": i, "phrase": f"region {i}"}]} for i in (1, 2, 3)]
    tools.write_json(vg / "region_descriptions.json", regions)
    data = [
        {"image_id": i, "url": f"x/VG_100K/{i}.jpg", "coco_id": coco, "flickr_id": None}
        for i, coco in ((1, None), (2, 139), (3, 9))
    ]
    tools.write_json(vg / "image_data.json", data)
    return coco, vg


def test_several_sources_together(sources, tmp_path):
    coco, vg = sources
    data = prepare(
        "mix", [f"karpathy={coco}", f"coco={coco}/captions_train2014.json", f"visual_genome={vg}"], tmp_path / "out"
    )
    # Visual Genome photo 2 is a COCO val photo, known from the Karpathy file beside it; caption 1 was read before
    assert [text for *_, text in records(data, "train")] == ["nine", "nine again", "region 1", "region 3"]
    train = data.split("train")
    assert train.num_images == 3  # one photo for both COCO files
    assert [train.source(r) for r in range(4)] == ["coco", "coco", "visual_genome", "visual_genome"]
    assert data.info["excluded"] == {"COCO val": {"images": 1, "rows": 1}}
    assert data.info["notes"][0] == "Visual Genome photos that dataset_coco.json holds out were left out too"
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").open()]
    assert bad == [
        {
            "file": f"{coco}/captions_train2014.json",
            "place": "annotation 1",
            "reason": f"id '1' is repeated in split train; first at {coco}/dataset_coco.json: image 0, sentence 0",
        }
    ]


def test_the_same_with_lists_said(sources, tmp_path):
    coco, vg = sources
    data = prepare("visual_genome", [vg], tmp_path / "out", exclude=[coco / "dataset_coco.json"], split="val")
    assert [text for *_, text in records(data, "val")] == ["region 1", "region 3"]
    assert data.info["excluded"] == {"COCO val": {"images": 1, "rows": 1}}


def test_a_list_that_leaves_nothing_out_is_told(sources, tools, tmp_path):
    coco, vg = sources
    (tmp_path / "none.txt").write_text("coco-less.jpg\n31415926\n")
    lists = [coco / "dataset_coco.json", tmp_path / "none.txt"]
    data = prepare("visual_genome", [vg], tmp_path / "out", exclude=lists)
    told = [note for note in data.info["notes"] if "names no photo" in note]
    assert told == [f"--exclude {tmp_path / 'none.txt'} names no photo of this data"]
    (tmp_path / "x").mkdir()
    (tmp_path / "one.txt").write_text("coco-less.jpg\n139\n")
    for name in ("two.txt", "x/one.txt"):
        (tmp_path / name).write_text("139\n" if name == "two.txt" else "31415926\n")
    lists = [tmp_path / name for name in ("one.txt", "two.txt", "x/one.txt")]
    data = prepare("visual_genome", [vg], tmp_path / "again", exclude=lists)
    told = [note for note in data.info["notes"] if "names no photo" in note]
    assert told == [f"--exclude {tmp_path / 'x/one.txt'} names no photo of this data"]


def test_photos_of_an_official_val_file_stay_out_of_visual_genome(photos, sources, tools, tmp_path):
    _, vg = sources
    content = {"images": [{"id": 9, "file_name": "5.jpg"}], "annotations": [{"id": 7, "image_id": 9, "caption": "x"}]}
    val = tools.write_json(photos / "captions_val2014.json", content)
    data = prepare("mix", [f"coco={val}", f"visual_genome={vg}"], tmp_path / "out")
    assert [text for *_, text in records(data, "train")] == ["region 1", "region 2"]  # photo 3 is COCO's 9
    assert data.info["excluded"] == {"COCO val": {"images": 1, "rows": 1}}
    alone = prepare("visual_genome", [vg], tmp_path / "alone", exclude=[val])
    assert [text for *_, text in records(alone, "train")] == ["region 1", "region 2"]


def test_equal_ids_of_different_sets_are_no_duplicates(photos, sources, tmp_path):
    _, vg = sources
    table = write_csv(photos / "mine.csv", ["1,5.jpg,mine"], "id,image,text")
    data = prepare("mix", [f"csv={table}", f"visual_genome={vg}"], tmp_path / "out")
    assert [r[0] for r in records(data, "train")] == ["1", "1", "2", "3"]
    again = prepare("mix", [f"csv={table}", f"csv={write_csv(photos / 'b.csv', ['1,6.jpg,x'], 'id,image,text')}"],
                    tmp_path / "two")  # fmt: skip
    assert again.info["bad_rows"]["total"] == 1


@pytest.mark.parametrize(
    ("tables", "prefixes"),
    [
        (["x/data.csv", "y/data.csv"], ["x/data", "y/data"]),
        (["a/x/data.csv", "b/x/data.csv"], ["a/x/data", "b/x/data"]),
        (["data.csv", "data.tsv", "y/data.csv.gz"], ["data.csv", "data.tsv", "data.csv.gz"]),
        (["x/data.csv", "y/other.csv"], ["data", "other"]),
    ],
)
def test_rows_without_ids_of_tables_of_one_name_keep_apart(photos, tmp_path, tables, prefixes):
    paths = [write_csv(photos / name, [f"{k}.jpg,text {k}"]) for k, name in enumerate(tables)]
    data = prepare("csv", paths, tmp_path / "out", images=[photos])
    assert data.info["bad_rows"]["total"] == 0
    assert [identity for identity, *_ in records(data, "train")] == [f"{prefix}:2" for prefix in prefixes]


def test_questions_of_tables_of_one_name_keep_apart(photos, tmp_path):
    paths = [write_csv(photos / x / "data.csv", ["1.jpg,Who?,me"], "image,question,answer") for x in "xy"]
    train = prepare("csv", paths, tmp_path / "out", images=[photos]).split("train")
    assert [train.target(r)["question_id"] for r in range(2)] == ["x/data:2", "y/data:2"]


def test_a_table_named_twice_is_found_out(photos, tmp_path, monkeypatch):
    table = write_csv(photos / "x" / "data.csv", ["1.jpg,a"])
    monkeypatch.chdir(photos)
    data = prepare("csv", [table, "x/data.csv"], tmp_path / "out", images=[photos])
    assert [identity for identity, *_ in records(data, "train")] == ["data:2"]
    assert data.info["bad_rows"]["kinds"] == {"id '...' is repeated in split train": 1}


def test_a_split_for_one_source_of_a_mix(photos, tmp_path):
    one, two = write_csv(photos / "one.csv", ["1.jpg,a"]), write_csv(photos / "two.csv", ["2.jpg,b"])
    data = prepare("mix", [f"csv={one}", f"csv:test={two}"], tmp_path / "out")
    assert {s: records(data, s)[0][2] for s in data.info["splits"]} == {"train": "a", "test": "b"}


def test_prepared_folders_put_together(flickr, photos, tmp_path):
    one = prepare("karpathy", [flickr], tmp_path / "one", shards=True)
    two = prepare("csv", [write_csv(photos / "train.csv", ["1.jpg,a", "2.jpg,b"])], tmp_path / "two")
    both = prepare("prepared", [tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert records(both, "train") == records(one, "train") + records(two, "train")
    assert bytes_of(both, "train") == {**bytes_of(one, "train"), **bytes_of(two, "train")}
    assert records(both, "val") == records(one, "val")
    same = prepare("prepared", [tmp_path / "one"], tmp_path / "same", shards=True)
    assert same.fingerprint == one.fingerprint


def test_two_images_and_targets_survive(photos, tmp_path, monkeypatch):
    from pixelbert.data.formats import FORMATS, Format
    from pixelbert.data.records import Example

    def read(source, **_):
        for k, (left, right) in enumerate([(1, 2), (3, 1), (1, 4)]):
            yield Example(str(k), "train", f"{left}.jpg", f"{left}.jpg", f"t{k}", f"{source}: line {k}", f"{right}.jpg",
                          {"label": k % 2 == 0}, "own")  # fmt: skip

    monkeypatch.setitem(FORMATS, "twos", Format(lambda p: [p], read, "", task="nlvr2"))
    (photos / "x.json").write_text("{}")
    first = prepare("twos", [photos / "x.json"], tmp_path / "out")
    again = prepare("prepared", [tmp_path / "out"], tmp_path / "again")
    for data in (first, again):
        part = data.split("train")
        assert data.task == "nlvr2"
        names = [part.image_id(i) for i in range(4)]
        assert sorted(names) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
        assert {names[i]: list(part.records_of(i)) for i in range(4) if part.records_of(i)} == {
            "1.jpg": [0, 1],
            "3.jpg": [2],
        }
        pairs = [(names[part.image_of[r]], names[part.second_image(r)], part.text(r), part.target(r)) for r in range(3)]
        assert pairs == [
            ("1.jpg", "2.jpg", "t0", {"label": True}),
            ("1.jpg", "4.jpg", "t2", {"label": True}),
            ("3.jpg", "1.jpg", "t1", {"label": False}),
        ]
    assert [first.split("train").image_id(i) for i in range(4)] == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    table = write_csv(photos / "mine.csv", ["1.jpg,a"])
    with pytest.raises(DataError, match="holds data for the task nlvr2, and the sources before it for pairs"):
        prepare("mix", [f"csv={table}", f"prepared={tmp_path / 'out'}"], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_a_share_of_the_images_becomes_val(photos, tmp_path):
    table = write_csv(photos / "train.csv", [f"{i}.jpg,text {k}" for i in range(10) for k in range(3)])
    data = prepare("csv", [table], tmp_path / "out", val_fraction=0.4)
    val = {image for _, image, _ in records(data, "val")}
    assert val == {f"{i}.jpg" for i in range(10) if hash_share(f"{i}.jpg") < 0.4}
    assert val.isdisjoint({image for _, image, _ in records(data, "train")})
    assert len(records(data, "val")) == 3 * len(val)
    assert data.info["notes"] == []
    more = write_csv(photos / "train.csv", [f"{i}.jpg,text" for i in range(5)])  # other rows: same choice
    kept = {image for _, image, _ in records(prepare("csv", [more], tmp_path / "b", val_fraction=0.4), "val")}
    assert kept == {image for image in val if int(image[0]) < 5}


def test_data_to_train_on_without_a_val_split_is_told(photos, tmp_path):
    from rich.console import Console

    table = write_csv(photos / "train.csv", [f"{i}.jpg,text" for i in range(10)])
    for fraction, told in ((0.0, True), (0.4, False)):
        stream = io.StringIO()
        prepare("csv", [table], tmp_path / f"{told}", val_fraction=fraction, console=Console(file=stream, width=200))
        assert ("No split 'val': training needs one; --val-fraction 0.1" in stream.getvalue()) == told


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_of_the_division_is_empty(photos, tmp_path, fraction):
    table = write_csv(photos / "mine.csv", ["1.jpg,a", "2.jpg,b"])
    data = prepare("csv", [table], tmp_path / "out", val_fraction=fraction)
    assert [c["images"] for c in data.info["splits"].values()] == [1, 1]


def test_rows_that_name_their_split_are_not_divided(photos, tmp_path):
    table = write_csv(photos / "mine.csv", ["1.jpg,a,train", "2.jpg,b,test"], "image,text,split")
    data = prepare("csv", [table], tmp_path / "out", val_fraction=0.5)
    assert list(data.info["splits"]) == ["train", "test"]
    assert "--val-fraction divided nothing" in data.info["notes"][0]


def test_an_image_in_two_splits_is_told(photos, tmp_path):
    (photos / "link.jpg").symlink_to(photos / "1.jpg")
    table = write_csv(photos / "mine.csv", ["1.jpg,a,train", "link.jpg,b,val", "2.jpg,c,test"], "image,text,split")
    data = prepare("csv", [table], tmp_path / "out")
    assert data.info["notes"] == [
        f"LEAK: 1 image(s) in both train and val, for example {photos / '1.jpg'}",
    ]


def test_webdataset_tars_plain_and_packed(tmp_path, tools):
    def members(keys):
        return {
            f"{k:09d}.{e}": tools.picture(k) if e == "jpg" else f"text {k}".encode()
            for k in keys
            for e in ("jpg", "txt")
        }

    folder = tmp_path / "cc"
    tools.write_tar(folder / "00000.tar", members([0, 1]))
    tools.write_tar(folder / "00001.tar", {})  # no download of this shard succeeded
    tools.write_tar(folder / "00002.tar.gz", members([2, 3]), "w:gz")
    data = prepare("webdataset", [folder], tmp_path / "out")
    assert [text for *_, text in records(data, "train")] == [f"text {k}" for k in range(4)]
    shutil.move(tmp_path / "out", tmp_path / "moved")
    data = PreparedData(tmp_path / "moved")
    assert list(bytes_of(data, "train").values()) == [tools.picture(k) for k in range(4)]
    sharded = prepare("webdataset", [folder], tmp_path / "sharded", shards=True)
    assert list(bytes_of(sharded, "train").values()) == [tools.picture(k) for k in range(4)]
    assert not (tmp_path / "sharded" / "unpacked").exists()


def test_sources_at_urls(tmp_path, tools, monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/web/mine.csv", b"image,text\na.jpg,one\nb.jpg,two\n")
    for k, name in enumerate("ab"):
        system.pipe(f"/web/pics/{name}.jpg", tools.picture(k))
    data = prepare("csv", ["memory://web/mine.csv"], tmp_path / "out", images=["memory://web/pics"])
    assert list(bytes_of(data, "train").values()) == [tools.picture(0), tools.picture(1)]

    own = prepare("csv", ["memory://web/mine.csv"], tmp_path / "own", images=["memory://web/pics"], shards=True)
    system.put(str(tmp_path / "own"), "/bucket/own", recursive=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        remote = PreparedData("memory://bucket/own")
        assert remote.fingerprint == own.fingerprint
        assert records(remote, "train") == records(own, "train")
        assert bytes_of(remote, "train") == bytes_of(own, "train")


def test_replacing_prepared_data(photos, tmp_path):
    one, two = write_csv(photos / "one.csv", ["1.jpg,a"]), write_csv(photos / "two.csv", ["2.jpg,b"])
    prepare("csv", [one], tmp_path / "out")
    with pytest.raises(UsageError, match="give --overwrite"):
        prepare("csv", [two], tmp_path / "out")
    assert records(PreparedData(tmp_path / "out"), "train")[0][2] == "a"
    assert records(prepare("csv", [two], tmp_path / "out", overwrite=True), "train")[0][2] == "b"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


def test_the_summary_shows_ours_beside_the_paper(sources, tmp_path):
    from rich.console import Console

    coco, vg = sources
    stream = io.StringIO()
    prepare(
        "mix", [f"karpathy={coco}", f"visual_genome={vg}"], tmp_path / "out", console=Console(file=stream, width=120)
    )
    shown = stream.getvalue()
    assert "from the paper" in shown
    for figures in ("2 / 101K", "2 / 5.06M", "1 / 106K", "1 / 533K", "- / 204K", "- / 1.1M", "- / 214K", "- / 107K",
                    "1 / 92K", "1 / 460K", "- / 32K", "- / 160K"):  # fmt: skip
        assert figures in shown, figures
    assert "COCO val: 1 images, 1 texts" in shown
    assert "No bad rows." in shown


def test_counting_needs_no_photo_and_writes_nothing(sources, tmp_path):
    _, vg = sources
    for photo in (vg / "VG_100K").iterdir():
        photo.unlink()
    before = sorted(tmp_path.rglob("*"))
    info = survey("visual_genome", [vg])
    assert info["splits"]["train"]["sources"] == {"visual_genome": {"images": 3, "records": 3}}
    assert info["images_missing"] == 3
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("karpaty", ["x"]), {}, "unknown format 'karpaty'; did you mean 'karpathy'?"),
        (("csv", []), {}, "no SOURCE given"),
        (("mix", ["mine.csv"]), {}, "takes sources as FORMAT=PATH"),
        (("mix", ["cvs=mine.csv"]), {}, "unknown format 'cvs'; did you mean 'csv'?"),
        (("mix", ["csv:tset=mine.csv"]), {}, "unknown split 'tset'; did you mean 'test'?"),
        (("csv", ["mine.csv"]), {"split": "trian"}, "unknown split 'trian'; did you mean 'train'?"),
        (("csv", ["mine.csv"]), {"check_images": "ful"}, "check_images is 'ful'; did you mean 'full'?"),
        (("csv", ["mine.csv"]), {"val_fraction": 1.0}, "val_fraction is 1.0"),
        (("csv", ["mine.csv"]), {"merge_restval": True}, "the option merge_restval means nothing to the format csv"),
        (("csv", ["mine.csv"]), {"exclude": ["x"]}, "the option exclude means nothing"),
    ],
)
def test_a_wrong_command(photos, tmp_path, monkeypatch, arguments, options, message):
    monkeypatch.chdir(photos)
    write_csv(photos / "mine.csv", ["1.jpg,a"])
    with pytest.raises(UsageError) as caught:
        prepare(*arguments, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_split_that_the_file_says_itself_cannot_be_said(flickr, tmp_path):
    with pytest.raises(UsageError, match="the option split means nothing to the format karpathy"):
        prepare("karpathy", [flickr], tmp_path / "out", split="train")


def test_out_and_source_may_not_lie_in_each_other(photos, tmp_path):
    table = write_csv(photos / "mine.csv", ["1.jpg,a"])
    prepare("csv", [table], tmp_path / "out", shards=True)
    for out in (tmp_path / "out", tmp_path / "out" / "sub"):
        with pytest.raises(UsageError, match="lie in each other"):
            prepare("prepared", [tmp_path / "out"], out, overwrite=True)
    with pytest.raises(UsageError, match="lie in each other"):
        prepare("csv", [table], photos, overwrite=True)
    with pytest.raises(UsageError, match="local folder"):
        prepare("csv", [table], "s3://bucket/out")
