"""Every format on real files, where the shared data folder is there; counts from its READMEs."""

import json
import shutil

import pytest

from pixelbert.data.formats import FORMATS
from pixelbert.data.prepare import prepare, survey
from pixelbert.data.records import BadRow, Example


def counts(info):
    return {name: (c["images"], c["records"]) for name, c in info["splits"].items()}


def test_coco_sample_by_its_karpathy_file(shared_data, tmp_path):
    data = prepare("karpathy", [shared_data / "coco-sample"], tmp_path / "out", check_images="full")
    assert counts(data.info) == {"train": (59, 295), "restval": (140, 700), "val": (25, 125), "test": (27, 135)}
    assert data.info["bad_rows"]["total"] == 0
    assert data.info["notes"] == []
    test = data.split("test")
    assert (test.image_id(0), test.text(0)) == ("391895", "A man with a red helmet on a small moped on a dirt road.")
    assert test.image(0).file.endswith("val2014/COCO_val2014_000000391895.jpg")


def test_coco_sample_by_its_official_captions(shared_data, tmp_path):
    data = prepare("coco", [shared_data / "coco-sample"], tmp_path / "out")
    assert counts(data.info) == {"train": (59, 295), "val": (192, 960)}
    held_out = shared_data / "coco-sample" / "annotations" / "dataset_coco.json"
    train = prepare("coco", [shared_data / "coco-sample"], tmp_path / "b", split="train", exclude=[held_out])
    # what is left of train2014 and val2014 without Karpathy's val and test is his train and restval
    assert counts(train.info) == {"train": (59 + 140, 295 + 700)}
    assert train.info["excluded"]["COCO val"]["images"] == 25
    assert train.info["excluded"]["COCO test"]["images"] == 27


def test_flickr8k_in_tars(shared_data, tmp_path):
    data = prepare("karpathy", [shared_data / "flickr8k"], tmp_path / "out")
    assert counts(data.info) == {"train": (6000, 30000), "val": (1000, 5000)}
    assert data.info["bad_rows"]["total"] == 0
    assert data.split("val").image(999).read()[:2] == b"\xff\xd8"


def test_karpathy_samples_without_photos(shared_data):
    folder = shared_data / "karpathy-sample"
    coco, flickr = (survey("karpathy", [folder / f"dataset_{name}.json"]) for name in ("coco", "flickr30k"))
    assert {name: images for name, (images, _) in counts(coco).items()} == {
        "train": 14, "restval": 12, "val": 12, "test": 12
    }  # fmt: skip
    assert {name: images for name, (images, _) in counts(flickr).items()} == {"train": 20, "val": 15, "test": 15}
    assert flickr["images_missing"] == 50
    assert list(flickr["splits"]["train"]["sources"]) == ["flickr30k"]


@pytest.mark.parametrize(
    ("name", "rows"), [("region_descriptions.json", 1278), ("region_descriptions_v1.0.json", 1288)]
)
def test_visual_genome_sample(shared_data, tmp_path, tools, name, rows):
    folder = shared_data / "vg-sample"
    examples = list(FORMATS["visual_genome"].read(folder / name))
    assert not any(isinstance(e, BadRow) for e in examples)
    assert len(examples) == rows
    assert len({e.image_id for e in examples if isinstance(e, Example)}) == 5
    # with photos drawn where its `url`s say they lie
    for image in json.loads((folder / "image_data.json").read_text()):
        photo = tmp_path / "vg" / "/".join(image["url"].split("/")[-2:])
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(tools.picture(image["image_id"]))
    shutil.copy(folder / name, tmp_path / "vg")
    shutil.copy(folder / "image_data.json", tmp_path / "vg")
    data = prepare("visual_genome", [tmp_path / "vg"], tmp_path / "out")
    bad = data.info["bad_rows"]["total"]
    assert counts(data.info) == {"train": (5, rows - bad)}
    assert bad == sum(not e.text.strip() for e in examples if isinstance(e, Example))
