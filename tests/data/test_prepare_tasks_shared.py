"""Questions and statements of real files, where the shared data folder is there; counts from its READMEs."""

import gzip
import json
from collections import Counter

from pixelbert.data.formats.vqa_files import locate, pair_files
from pixelbert.data.prepare import prepare, survey


def counts(info):
    return {name: (c["images"], c["records"]) for name, c in info["splits"].items()}


def content(path, key):
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)[key]


def labels(split):
    return Counter(split.target(r)["label"] for r in range(split.num_records))


def assert_same_as_files(data, folder):
    """Every record says what the two official files say, string for string."""
    for questions, annotations in pair_files(locate(folder)):
        asked = {row["question_id"]: row for row in content(questions, "questions")}
        labelled = {row["question_id"]: row for row in content(annotations, "annotations")}
        part = data.split("val" if "_dev_" in questions.name or "_val_" in questions.name else "train")
        assert part.num_records == len(asked) == len(labelled)
        for record in range(part.num_records):
            target = part.target(record)
            identity = target["question_id"]
            assert part.record_id(record) == str(identity)
            assert target == labelled[identity]
            assert part.text(record) == asked[identity]["question"].strip()
            assert part.image_id(int(part.image_of[record])) == str(asked[identity]["image_id"])


def test_vqa2_mini(shared_data, tmp_path):
    data = prepare("vqa", [shared_data / "vqa2-mini"], tmp_path / "out")
    assert counts(data.info) == {"train": (645, 1652), "val": (114, 303)}
    assert_same_as_files(data, shared_data / "vqa2-mini")
    types = Counter(data.split("dev").target(r)["answer_type"] for r in range(303))
    assert types == {"yes/no": 93, "number": 85, "other": 125}
    row = next(row for row in data.info["table1"] if row["task"] == "VQA")
    assert (row["images"], row["texts"]) == (759, 1955)


def test_flickr8k_qa_with_photos_in_tars_by_its_map(shared_data, tmp_path):
    files = sorted((shared_data / "flickr8k-qa").glob("*_val_*.json.gz"))
    data = prepare("vqa", files, tmp_path / "out", images=[shared_data / "flickr8k"])
    assert counts(data.info) == {"val": (953, 4524)}
    part = data.split("val")
    assert part.image(0).read()[:2] == b"\xff\xd8"
    names = json.loads((shared_data / "flickr8k-qa" / "image_ids.json").read_text())
    assert names[part.image_id(0)].endswith(".jpg")
    train = survey("vqa", sorted((shared_data / "flickr8k-qa").glob("*_train_*")), images=[shared_data / "flickr8k"])
    assert (counts(train), train["images_missing"]) == ({"train": (5753, 28564)}, 0)


def test_easy_vqa_by_the_number_in_the_names(shared_data, tmp_path):
    files = sorted((shared_data / "easy-vqa").glob("*_dev_*.json.gz"))
    data = prepare("vqa", files, tmp_path / "out")
    assert counts(data.info) == {"val": (1000, 9673)}
    assert data.split("val").image(0).file.endswith("images-dev-000.tar")


def test_coco_sample_by_its_official_names(shared_data, tmp_path):
    data = prepare("vqa", [shared_data / "coco-sample"], tmp_path / "out")
    assert counts(data.info) == {"train": (67, 102)}
    assert data.split("train").image(0).file.endswith("train2014/COCO_train2014_000000000025.jpg")


def test_flickr8k_pairs_by_its_map(shared_data, tmp_path):
    folder = shared_data / "flickr8k-pairs"
    data = prepare("nlvr2", [folder / "dev.json"], tmp_path / "out", images=[shared_data / "flickr8k"])
    part = data.split("val")
    assert (part.num_records, labels(part)) == (3000, {True: 1500, False: 1500})
    lines = {row["identifier"]: row for row in map(json.loads, (folder / "dev.json").open())}
    for record in range(part.num_records):
        row = lines[part.record_id(record)]
        images = [part.image_id(i) for i in (int(part.image_of[record]), part.second_image(record))]
        assert images == [row["left_url"], row["right_url"]]
        assert part.target(record)["label"] is (row["label"] == "True")
        assert part.text(record) == row["sentence"]


def test_nlvr2_samples_without_photos(shared_data):
    info = survey("nlvr2", [shared_data / "nlvr" / "nlvr2"])
    assert {name: records for name, (_, records) in counts(info).items()} == {"val": 200, "test": 200}
    assert info["images_missing"] == sum(images for images, _ in counts(info).values())


def test_nlvr_with_pictures_in_tars(shared_data, tmp_path):
    folder = shared_data / "nlvr"
    data = prepare("nlvr", [folder], tmp_path / "a")
    assert counts(data.info) == {"train": (1000,) * 2, "val": (989,) * 2, "test": (990,) * 2, "test-std": (985,) * 2}
    found = {name: labels(data.split(name)) for name in data.info["splits"]}
    assert [(c[True], c[False]) for c in found.values()] == [(587, 413), (547, 442), (556, 434), (546, 439)]
    parts = [f"nlvr:train={folder}/{name}.json" for name in ("train", "test", "hidden")]
    assert counts(prepare("mix", [*parts, f"nlvr={folder}/dev.json"], tmp_path / "b").info) == {
        "train": (2975, 2975), "val": (989, 989)
    }  # fmt: skip


def test_vqa_rad_as_an_own_table(shared_data, tmp_path):
    data = prepare("jsonl", [shared_data / "vqa-rad"], tmp_path / "out")
    assert (data.task, counts(data.info)) == ("vqa", {"train": (314, 3064), "test": (203, 451)})
    assert data.info["notes"][0].startswith("LEAK: 203 image(s) in both train and test")  # as its README says
    test = data.split("test")
    assert Counter(test.target(r)["answer_type"] for r in range(451)) == {"CLOSED": 272, "OPEN": 179}
    lines = {row["question_id"]: row for row in map(json.loads, (shared_data / "vqa-rad" / "test.jsonl").open())}
    for record in range(test.num_records):
        target = test.target(record)
        row = lines[target["question_id"]]
        assert target["answers"] == [{"answer": row["answer"], "answer_id": 1}]
        assert (target["image_id"], test.text(record)) == (row["image"], row["question"])
