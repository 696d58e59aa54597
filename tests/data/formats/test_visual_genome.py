"""Visual Genome regions of both versions, and the filter that keeps photos of the test sets out."""

import pytest

from pixelbert.data.formats import visual_genome
from pixelbert.data.formats.exclusion import load_exclusions
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError

IMAGE_DATA = [
    {"image_id": 1, "url": "https://x.edu/rak248/VG_100K_2/1.jpg", "coco_id": None, "flickr_id": None},
    {"image_id": 2, "url": "https://x.edu/rak248/VG_100K/2.jpg", "coco_id": 139, "flickr_id": 11},
    {"image_id": 3, "url": "https://x.edu/rak248/VG_100K/3.jpg", "coco_id": 42, "flickr_id": 777},
    {"image_id": 4, "url": "https://x.edu/rak248/VG_100K/4.jpg", "coco_id": 9, "flickr_id": 12},
]


def regions(image, phrases, version="1.2"):
    names = ("region_id", "image_id") if version == "1.2" else ("id", "image")
    box = {"x": 0, "y": 0, "width": 5, "height": 5}
    return {
        "id": image,
        "regions": [{names[0]: 100 * image + k, names[1]: image, "phrase": p, **box} for k, p in enumerate(phrases)],
    }


@pytest.fixture
def folder(tmp_path, tools):
    for name, version in (("region_descriptions.json", "1.2"), ("region_descriptions_v1.0.json", "1.0")):
        images = [regions(i, [f"thing {i} a ", f"thing {i} b"], version) for i in (1, 2, 3, 4)]
        tools.write_json(tmp_path / "vg" / name, images)
    tools.write_json(tmp_path / "vg" / "image_data.json", IMAGE_DATA)
    return tmp_path / "vg"


@pytest.fixture
def lists(tmp_path, tools):
    entry = tools.karpathy_image
    coco = [
        entry("COCO_val2014_000000000139.jpg", "val", ["x"], 0, cocoid=139, filepath="val2014"),
        entry("COCO_val2014_000000000042.jpg", "restval", ["x"], 1, cocoid=42, filepath="val2014"),
        entry("COCO_train2014_000000000009.jpg", "train", ["x"], 2, cocoid=9, filepath="train2014"),
    ]
    flickr = [entry("777.jpg", "train", ["x"], 3), entry("778.jpg", "test", ["x"], 4)]
    return [
        tools.write_json(tmp_path / "dataset_coco.json", {"images": coco}),
        tools.write_json(tmp_path / "dataset_flickr30k.json", {"images": flickr}),
    ]


@pytest.mark.parametrize("name", ["region_descriptions.json", "region_descriptions_v1.0.json"])
def test_both_versions_read_the_same(folder, name):
    rows = list(visual_genome.read(folder / name))
    assert rows[0] == Example(
        "100", "", "VG_100K_2/1.jpg", "1", "thing 1 a ", f"{folder / name}: image 0, region 0", source="visual_genome"
    )
    assert [r.id for r in rows] == ["100", "101", "200", "201", "300", "301", "400", "401"]


def test_of_two_versions_in_a_folder_the_newer_is_read_once(folder):
    assert visual_genome.locate(folder) == [folder / "region_descriptions.json"]
    (folder / "region_descriptions.json").unlink()
    assert visual_genome.locate(folder) == [folder / "region_descriptions_v1.0.json"]


def test_held_out_photos_are_dropped_and_counted(folder, lists):
    rows = list(visual_genome.read(folder / "region_descriptions.json", exclude=load_exclusions(lists)))
    # 139 is COCO val; 777 is in Flickr30K; 42 is restval and 9 train: not held out by their COCO ids
    assert [r for r in rows if isinstance(r, Excluded)] == [Excluded("COCO val", 2), Excluded("Flickr30K", 2)]
    assert {r.image_id for r in rows if isinstance(r, Example)} == {"1", "4"}


@pytest.mark.parametrize("first", [True, False])
def test_a_photo_listed_twice_stays_out_if_either_entry_says_so(folder, lists, tools, first):
    bare = {"image_id": 2, "url": "https://x.edu/rak248/VG_100K/2.jpg"}
    tools.write_json(folder / "image_data.json", [bare, *IMAGE_DATA] if first else [*IMAGE_DATA, bare])
    rows = list(visual_genome.read(folder / "region_descriptions.json", exclude=load_exclusions(lists)))
    assert {r.image_id for r in rows if isinstance(r, Example)} == {"1", "4"}


def test_without_lists_it_says_what_may_leak(folder, lists):
    notes: list[str] = []
    list(visual_genome.read(folder / "region_descriptions.json", notes=notes))
    assert [n.split(",")[0] for n in notes] == [
        "3 Visual Genome photos are COCO photos",
        "3 Visual Genome photos have a Flickr id",
    ]
    notes.clear()
    list(visual_genome.read(folder / "region_descriptions.json", exclude=load_exclusions(lists), notes=notes))
    assert notes == []


def test_gzipped_and_image_data_elsewhere(tmp_path, tools):
    path = tools.write_json(tmp_path / "a" / "region_descriptions.json.gz", [regions(1, ["x"])])
    with pytest.raises(DataError, match=r"image_data\.json: no such file"):
        list(visual_genome.read(path))
    data = tools.write_json(tmp_path / "b" / "image_data.json.gz", IMAGE_DATA)
    assert [r.image for r in visual_genome.read(path, image_data=data)] == ["VG_100K_2/1.jpg"]


def test_rows_that_cannot_be_used(tmp_path, tools):
    tools.write_json(tmp_path / "image_data.json", IMAGE_DATA)
    broken = regions(1, ["x"])
    broken["regions"].append(3)
    path = tools.write_json(tmp_path / "region_descriptions.json", [{"id": 1}, regions(77, ["x"]), broken])
    assert [r for r in visual_genome.read(path) if isinstance(r, BadRow)] == [
        BadRow(str(path), "image 0", "has no list of 'regions'"),
        BadRow(str(path), "image 1, region 0", "image '77' is not in image_data.json"),
        BadRow(str(path), "image 2, region 1", "an object was expected, found int"),
    ]


def test_an_image_without_region_is_a_bad_row(folder, lists, tools):
    path = tools.write_json(folder / "region_descriptions.json", [regions(i, []) for i in (1, 2, 77)])
    told = [("image 0", "'VG_100K_2/1.jpg' has no region"), ("image 2", "image '77' has no region")]
    rows = list(visual_genome.read(path, exclude=load_exclusions(lists), split="val"))
    # photo 2 stays out anyway
    assert rows == [BadRow(str(path), place, reason, "val", captionless=True) for place, reason in told]


def test_other_files_are_refused(folder, tools):
    tools.write_json(folder / "region_descriptions.json", {"images": []})
    with pytest.raises(DataError, match="is no list of images"):
        list(visual_genome.read(folder / "region_descriptions.json"))
    tools.write_json(folder / "image_data.json", [])
    with pytest.raises(DataError, match="names no image"):
        list(visual_genome.read(folder / "region_descriptions.json"))
