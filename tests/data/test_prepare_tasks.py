"""`prepare` for questions and statements: from files to prepared data, whole or not at all."""

import io
import json
import re
import shutil

import pytest
from rich.console import Console

from pixelbert.cli import main
from pixelbert.data.prepare import prepare, survey
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from tiny_tasks import write_vqa


def answers(*texts):
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]


@pytest.fixture
def vqa(tmp_path, tools):
    """Train, val (two questions an image) and test-dev in the official layout, photos 1-3, 4 and 5."""
    folder = tmp_path / "vqa"
    for subtype, photos in (("train2014", (1, 2, 3)), ("val2014", (4,)), ("test-dev2015", (5,))):
        head = {"info": {}, "data_type": "mscoco", "data_subtype": subtype, "license": {}}
        pairs = [(photo, 10 * photo + n) for n in range(2) for photo in photos]
        asked = [{"image_id": p, "question": f"Question {q}?", "question_id": q} for p, q in pairs]
        name = f"v2_OpenEnded_mscoco_{subtype}_questions.json"
        tools.write_json(folder / "questions" / name, {**head, "questions": asked})
        images = "test2015" if "test" in subtype else subtype
        for photo in photos:
            path = folder / images / f"COCO_{images}_{photo:012d}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tools.picture(photo))
        if "test" not in subtype:
            labelled = [
                {"question_id": q, "image_id": p, "question_type": "what", "answer_type": "other",
                 "multiple_choice_answer": "cat", "answers": answers(*["cat"] * 6, *["Dog "] * 4)}
                for p, q in pairs
            ]  # fmt: skip
            tools.write_json(
                folder / "questions" / f"v2_mscoco_{subtype}_annotations.json", {**head, "annotations": labelled}
            )
    return folder


@pytest.fixture
def nlvr2(tmp_path, tools):
    """Train (nested in `directory`) and dev (flat) in the official layout, two sentences a pair."""
    folder = tmp_path / "nlvr2"
    for part, inside in (("train", "images/train/7"), ("dev", "dev")):
        (folder / inside).mkdir(parents=True)
        rows = []
        for pair in range(3):
            for side in range(2):
                (folder / inside / f"{part}-1-{pair}-img{side}.png").write_bytes(
                    tools.picture(10 * pair + side + len(part), kind="PNG")
                )
            rows += [
                {"sentence": f"Sentence {n}.", "identifier": f"{part}-1-{pair}-{n}", "label": str(pair % 2 == n),
                 "left_url": "http://x/a.jpg", "right_url": "http://x/b.jpg", "directory": 7}
                for n in range(2)
            ]  # fmt: skip
        (folder / f"{part}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def nothing_left(folder):
    return not [p.name for p in folder.iterdir() if "out" in p.name]


def test_vqa_from_the_official_folder(vqa, tmp_path):
    data = prepare("vqa", [vqa], tmp_path / "out")
    assert data.task == "vqa"
    assert {n: (s["images"], s["records"]) for n, s in data.info["splits"].items()} == {
        "train": (3, 6), "val": (1, 2), "test-dev": (1, 2)
    }  # fmt: skip
    train = data.split("train")
    assert [train.record_id(r) for r in range(6)] == ["10", "11", "20", "21", "30", "31"]  # those of an image together
    assert train.text(3) == "Question 21?"
    assert train.image_id(1) == "2"
    assert train.target(3) == {
        "question_id": 21, "image_id": 2, "question_type": "what", "answer_type": "other",
        "multiple_choice_answer": "cat", "answers": answers(*["cat"] * 6, *["Dog "] * 4),
    }  # fmt: skip
    assert data.split("test-dev").target(0) == {"question_id": 50, "image_id": 5}
    row = next(row for row in data.info["table1"] if row["task"] == "VQA")
    assert (row["images"], row["texts"]) == (4, 8)
    assert data.info["sources"][2]["file"].endswith("val2014_questions.json")
    assert data.info["sources"][2]["annotations"].endswith("val2014_annotations.json")


def test_vqa_from_its_two_files_with_photos_elsewhere(vqa, tmp_path):
    files = sorted((vqa / "questions").glob("*val2014*"))
    again = prepare(
        "prepared", [prepare("vqa", files, tmp_path / "a", images=[vqa / "val2014"]).folder], tmp_path / "b"
    )
    assert (again.task, list(again.info["splits"])) == ("vqa", ["val"])
    assert again.split("dev").target(0)["question_id"] == 40  # another word for val
    other = prepare("vqa", files, tmp_path / "c", images=[vqa], split="test")
    assert list(other.info["splits"]) == ["test"]
    (vqa / "val2014").rename(vqa / "moved")
    photo = next((vqa / "moved").iterdir())
    photo.rename(photo.with_name("000000000004.jpg"))  # as COCO 2017 calls it
    assert prepare("vqa", files, tmp_path / "d", images=[vqa / "moved"]).split("val").num_records == 2


def test_train_and_val_together_as_train(vqa, tmp_path):
    shutil.rmtree(vqa / "test2015")
    sources = [f"vqa:train={path}" for path in sorted((vqa / "questions").glob("*2014_*"))]
    data = prepare("mix", sources, tmp_path / "out", images=[vqa])
    assert {n: s["records"] for n, s in data.info["splits"].items()} == {"train": 8}


def test_nlvr2_from_the_official_folder(nlvr2, tmp_path):
    data = prepare("nlvr2", [nlvr2], tmp_path / "out")
    assert {n: (s["images"], s["records"]) for n, s in data.info["splits"].items()} == {"train": (6, 6), "val": (6, 6)}
    val = data.split("val")
    for record in range(val.num_records):
        target = val.target(record)
        part, group, pair, number = target["identifier"].split("-")
        assert (part, group, val.record_id(record)) == ("dev", target["set"], target["identifier"])
        assert target["label"] is (int(pair) % 2 == int(number))
        images = int(val.image_of[record]), val.second_image(record)
        assert [val.image_id(i) for i in images] == [f"dev-1-{pair}-img{side}.png" for side in (0, 1)]
        assert val.image(images[1]).read() == (nlvr2 / "dev" / f"dev-1-{pair}-img1.png").read_bytes()
    row = next(row for row in data.info["table1"] if row["task"] == "NLVR2")
    assert (row["images"], row["texts"]) == (6, 6)


def test_nlvr_and_a_mix_that_trains_on_the_test_parts(tmp_path, tools):
    folder = tmp_path / "nlvr"
    folder.mkdir()
    for k, part in enumerate(("train", "dev", "hidden")):
        row = {"sentence": "A box.", "label": "true", "identifier": f"{k}-0", "directory": "3"}
        (folder / f"{part}.json").write_text(json.dumps(row) + "\n")
        name = f"{part}/images/3/{part}-{k}-0-0.png"
        tools.write_tar(folder / f"images-{part}.tar", {name: tools.picture(k, kind="PNG")})
    data = prepare("nlvr", [folder], tmp_path / "a")
    assert (data.task, list(data.info["splits"])) == ("nlvr", ["train", "val", "test-std"])
    sources = [f"nlvr:train={folder}/train.json", f"nlvr:train={folder}/hidden.json", f"nlvr={folder}/dev.json"]
    mixed = prepare("mix", sources, tmp_path / "b")
    assert {n: s["records"] for n, s in mixed.info["splits"].items()} == {"train": 2, "val": 1}
    assert mixed.split("train").second_image(0) == -1
    assert mixed.split("train").target(1) == {"identifier": "2-0", "label": True}


def test_tasks_do_not_mix(vqa, nlvr2, flickr, tmp_path, tools):
    for sources in (
        [f"karpathy={flickr}", f"vqa={vqa}"], [f"vqa={vqa}", f"nlvr2={nlvr2}"], [f"nlvr2={nlvr2}", f"karpathy={flickr}"]
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"holds data for the task .*, and the sources before it for"):
            prepare("mix", sources, tmp_path / "out")
    photo = tmp_path / "a.jpg"
    photo.write_bytes(tools.picture())
    own = tmp_path / "own.csv"
    own.write_text("image,question,answer\na.jpg,Who?,me\n")
    both = prepare("mix", [f"vqa={vqa}", f"csv={own}"], tmp_path / "both")  # one task: these do
    assert both.info["splits"]["train"]["records"] == 7
    with pytest.raises(UsageError, match="the option image_map means nothing to the format csv"):
        prepare("csv", [own], tmp_path / "c", image_map=["x.json"])


def test_a_question_without_image_stops_unless_it_is_allowed(vqa, tmp_path):
    (vqa / "train2014" / "COCO_train2014_000000000002.jpg").unlink()
    reason = (
        r"train2014_questions.json: question_id 20: image 'COCO_train2014_000000000002.jpg' not found in .*,"
        r" one of 2 bad rows; a score is over all of a split, so nothing was written \(--max-bad 2"
    )
    with pytest.raises(DataError, match=reason):
        prepare("vqa", [vqa], tmp_path / "out")
    assert nothing_left(tmp_path)
    counted = survey("vqa", [vqa])
    assert (counted["images_missing"], counted["splits"]["train"]["records"]) == (1, 6)
    data = prepare("vqa", [vqa], tmp_path / "out", max_bad=2)
    assert data.info["splits"]["train"]["records"] == 4
    assert data.info["bad_rows"]["total"] == 2


def test_what_was_left_out_of_a_test_split_is_told(vqa, tmp_path):
    path = vqa / "questions" / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    asked = json.loads(path.read_text())
    asked["questions"] += [{"image_id": 6, "question": "Lost?", "question_id": number} for number in (60, 61)]
    path.write_text(json.dumps(asked))
    data = prepare("vqa", [vqa], tmp_path / "out", max_bad=3)
    assert data.info["bad_rows"]["splits"] == {"test-dev": 2}
    assert data.info["notes"] == ["2 rows were left out of split 'test-dev' as bad: a score is not over all of it"]


@pytest.mark.parametrize("name", ["test-std", "test-standard", "test1"])
def test_the_test_questions_of_2015_are_those_of_test_standard(vqa, tmp_path, tools, name):
    path = vqa / "questions" / "v2_OpenEnded_mscoco_test-dev2015_questions.json"
    data = prepare("vqa", [vqa], tmp_path / "dev")
    with pytest.raises(DataError, match=f"no split '{name}'"):  # test-dev is no other word for it
        data.split(name)
    asked = {**json.loads(path.read_text()), "data_subtype": "test2015"}
    tools.write_json(path.with_name("v2_OpenEnded_mscoco_test2015_questions.json"), asked)
    data = prepare("vqa", [vqa], tmp_path / "out")
    assert data.split(name).folder == data.folder / "test"
    (path.parent / "v2_OpenEnded_mscoco_test-std2015_questions.json").write_text(json.dumps(asked))
    data = prepare("vqa", [vqa], tmp_path / "both")
    assert data.split(name).folder == data.folder / ("test" if name == "test1" else "test-std")


def test_a_test_split_of_ones_own_is_not_test_standard(tmp_path, tools):
    (tmp_path / "a.jpg").write_bytes(tools.picture())
    (tmp_path / "test.csv").write_text("image,question\na.jpg,Who?\n")
    with pytest.raises(DataError, match="no split 'test-std'; did you mean 'test'"):
        prepare("csv", [tmp_path / "test.csv"], tmp_path / "out").split("test-std")


def test_test2_of_nlvr2_is_test_standard(nlvr2, tmp_path):
    rows = (nlvr2 / "dev.json").read_text().replace("dev-", "test2-")
    (nlvr2 / "test2.json").write_text(rows)
    for photo in list((nlvr2 / "dev").iterdir()):
        shutil.copy(photo, photo.with_name(photo.name.replace("dev-", "test2-")))
    data = prepare("nlvr2", [nlvr2], tmp_path / "out")
    assert data.split("test2").folder == data.folder / "test-std"
    with pytest.raises(DataError, match="no split 'test1'"):
        data.split("test1")


def test_a_broken_photo_stops_too(vqa, tmp_path):
    (vqa / "val2014" / "COCO_val2014_000000000004.jpg").write_text("a text file")
    with pytest.raises(DataError, match="000000000004.jpg' is not an image"):
        prepare("vqa", [vqa], tmp_path / "out")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(("side", "word"), [(0, "left"), (1, "right")])
def test_a_statement_with_one_image_missing_is_named_with_the_side(nlvr2, tmp_path, side, word):
    (nlvr2 / "dev" / f"dev-1-1-img{side}.png").unlink()
    reason = f"dev.json: line 3, dev-1-1-0: {word} image 'dev-1-1-img{side}.png' not found in .*, one of 2 bad rows;"
    with pytest.raises(DataError, match=reason):
        prepare("nlvr2", [nlvr2], tmp_path / "out")
    assert nothing_left(tmp_path)


def test_a_repeated_identifier_is_named(nlvr2, tmp_path):
    path = nlvr2 / "dev.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    reason = "dev.json: line 7, dev-1-0-1: id 'dev-1-0-1' is repeated in split val; first at .*dev.json: line 2"
    with pytest.raises(DataError, match=reason):
        prepare("nlvr2", [nlvr2], tmp_path / "out")
    assert nothing_left(tmp_path)


def test_half_a_surrogate_pair_in_an_answer_is_a_bad_row(tmp_path, tools):
    (tmp_path / "a.jpg").write_bytes(tools.picture())
    good = {"image": "a.jpg", "question": "Who?", "answer": "me"}
    (tmp_path / "mine.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps({**good, "answer": "\ud800"}) + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="line 2: the target is not valid Unicode"):
        prepare("jsonl", [tmp_path / "mine.jsonl"], tmp_path / "out")


def test_the_command_takes_an_image_map(nlvr2, tmp_path, capsys):
    photos = {f"dev-1-{pair}-img{side}.png": f"p{pair}{side}.png" for pair in range(3) for side in range(2)}
    (tmp_path / "photos").mkdir()
    for name, own in photos.items():
        shutil.copy(nlvr2 / "dev" / name, tmp_path / "photos" / own)
    (tmp_path / "names.json").write_text(json.dumps(photos))
    out, names = str(tmp_path / "out"), str(tmp_path / "names.json")
    command = ["prepare", "nlvr2", str(nlvr2 / "dev.json"), "--images", str(tmp_path / "photos"), "--out", out]
    shutil.rmtree(nlvr2 / "dev")
    assert main(command) == 3
    assert "left image 'dev-1-0-img0.png' not found" in capsys.readouterr().err
    assert main([*command, "--image-map", names]) == 0
    val = PreparedData(out).split("val")
    assert [val.image_id(i) for i in (int(val.image_of[0]), val.second_image(0))] == ["p00.png", "p01.png"]


def test_test_and_test_dev_may_share_photos_and_are_no_leak(vqa, tmp_path, tools):
    asked = json.loads((vqa / "questions" / "v2_OpenEnded_mscoco_test-dev2015_questions.json").read_text())
    tools.write_json(
        vqa / "questions" / "v2_OpenEnded_mscoco_test2015_questions.json", {**asked, "data_subtype": "test2015"}
    )
    stream = io.StringIO()
    data = prepare("vqa", [vqa], tmp_path / "out", console=Console(file=stream, width=120))
    assert list(data.info["splits"]) == ["train", "val", "test", "test-dev"]
    assert data.info["notes"] == []
    assert "│ VQA 2.0" in stream.getvalue()


def tables_of(docs):
    """{file name: content} of the code blocks of the section on one's own data that begin with a file's name."""
    section = docs.read_text(encoding="utf-8").partition("\n## Your own photos\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"`([\w.]+)`:\n\n```\n(.*?)```", section, flags=re.S))


def test_the_worked_example_of_the_documentation(repository, tmp_path, tools):
    tables = tables_of(repository / "docs" / "data.md")
    expected = {"captions.csv": "pairs", "captions.jsonl": "pairs", "questions.csv": "vqa", "questions.jsonl": "vqa",
                "pairs.csv": "nlvr2", "statements.csv": "nlvr"}  # fmt: skip
    assert set(tables) == set(expected)
    for k, name in enumerate(("kitchen.jpg", "rider.jpg", "giraffe.jpg")):
        (tmp_path / name).write_bytes(tools.picture(k))
    for name, task in expected.items():
        (tmp_path / name).write_text(tables[name], encoding="utf-8")
        data = prepare(name.rpartition(".")[2], [tmp_path / name], tmp_path / f"out-{name}")
        assert data.task == task
        assert data.info["bad_rows"]["total"] == 0
    one, two = (PreparedData(tmp_path / f"out-questions.{end}").split("train") for end in ("csv", "jsonl"))
    assert [one.target(r)["answers"] for r in range(2)] == [two.target(r)["answers"] for r in range(2)]


def own(folder, tools, rows, name="mine.jsonl"):
    folder.mkdir(exist_ok=True)
    for k in range(24):
        (folder / f"{k}.jpg").write_bytes(tools.picture(k))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_pictures_of_one_statement_stay_on_one_side(tmp_path, tools):
    """Chains of three pictures: the middle one stands in two statements."""
    pairs = [(3 * k + i, 3 * k + i + 1) for k in range(8) for i in range(2)]
    rows = [{"left": f"{a}.jpg", "right": f"{b}.jpg", "text": "x", "label": "true"} for a, b in pairs]
    data = prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out", val_fraction=0.25)
    sides = {name: {split.image_id(i) for i in range(split.num_images)}
             for name, split in ((n, data.split(n)) for n in ("train", "val"))}  # fmt: skip
    assert not sides["train"] & sides["val"] and sides["val"] and len(sides["val"]) % 3 == 0
    assert not [note for note in data.info["notes"] if "LEAK" in note]


def test_where_all_pictures_hang_together_the_leak_is_told(tmp_path, tools):
    rows = [{"left": f"{k}.jpg", "right": f"{(k + 1) % 24}.jpg", "text": "x", "label": "true"} for k in range(24)]
    data = prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out", val_fraction=0.25)
    told = " ".join(data.info["notes"])
    assert "hang together" in told and "LEAK" in told and 3 <= data.info["splits"]["val"]["records"] <= 10


def test_where_nearly_all_hang_together_val_is_not_a_single_row(tmp_path, tools):
    """A ring of 22 pictures, and a pair apart."""
    pairs = [(k, (k + 1) % 22) for k in range(22)] + [(22, 23)]
    rows = [{"left": f"{a}.jpg", "right": f"{b}.jpg", "text": "x", "label": "true"} for a, b in pairs]
    data = prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out", val_fraction=0.25)
    assert data.info["splits"]["val"]["records"] >= 3 and "hang together" in " ".join(data.info["notes"])


def test_most_people_s_answer_is_counted_as_the_score_compares(tmp_path, tools):
    rows = [
        {"image": "0.jpg", "question": "how many", "answers": ["Two", "2", "two", "cat", "cat"]},
        {"image": "1.jpg", "question": "what", "answers": ["cat", "cat", "dog"]},
        {"image": "2.jpg", "question": "what", "answer": float("nan")},
    ]
    data = prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out", max_bad=1)
    split = data.split("train")
    assert [split.target(r)["multiple_choice_answer"] for r in range(split.num_records)] == ["Two", "cat"]
    assert "an answer is nan, no text" in (tmp_path / "out" / "bad_rows.jsonl").read_text()


def test_other_pictures_of_the_same_names_are_other_data(tmp_path, tools):
    path = own(tmp_path / "own", tools, [{"image": "0.jpg", "text": "x"}])
    first = prepare("jsonl", [path], tmp_path / "out").fingerprint
    moved = path.parent.rename(tmp_path / "moved") / path.name
    assert prepare("jsonl", [moved], tmp_path / "out", overwrite=True).fingerprint == first
    (moved.parent / "0.jpg").write_bytes(tools.picture(0, (80, 60)))
    assert prepare("jsonl", [moved], tmp_path / "out", overwrite=True).fingerprint != first


def test_a_folder_that_is_given_twice_repeats_its_ids(nlvr2, flickr, tmp_path, tools):
    """Also where ids are unique within a SOURCE alone: two sets of one's own may count from 1."""
    names = [f"{part}-1-{pair}-img{side}.png" for part in ("train", "dev") for pair in range(3) for side in range(2)]
    mapped = {name: str(next(nlvr2.rglob(name)).relative_to(nlvr2)) for name in names}
    tools.write_json(nlvr2 / "image_map.json", mapped)
    (flickr / "dataset_flickr8k.json").rename(flickr / "dataset_ours.json")
    again = tmp_path / "again"
    again.symlink_to(flickr)
    questions = write_vqa(tmp_path / "questions")  # of a data_type of their own
    for form, sources in (("nlvr2", [nlvr2] * 2), ("vqa", [questions] * 2)):
        prepare(form, sources[:1], tmp_path / f"one-{form}")
        with pytest.raises(DataError, match="is repeated in split"):
            prepare(form, sources, tmp_path / f"two-{form}")
    once, twice = (prepare("karpathy", [flickr, again][:n], tmp_path / f"photos-{n}") for n in (1, 2))
    counts = [[data.split(name).num_records for name in ("train", "val")] for data in (once, twice)]
    assert counts == [[12, 4]] * 2 and twice.info["bad_rows"]["total"] == 16, "pairs are left out, and told"


def test_an_id_that_a_line_of_predictions_cannot_hold_is_a_bad_row(tmp_path, tools):
    for name in ("a\rb", "a\nb"):
        rows = [{"image": "0.jpg", "text": "x", "label": "true", "id": name}]
        with pytest.raises(DataError, match="has a line break"):
            prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out")


def test_an_id_of_thousands_of_digits_is_text(tmp_path, tools):
    rows = [{"image": "0.jpg", "question": "what", "answer": "x", "question_id": "9" * 5000}]
    split = prepare("jsonl", [own(tmp_path / "own", tools, rows)], tmp_path / "out").split("train")
    assert split.target(0)["question_id"] == "9" * 5000
