"""The official VQA v2 files: what becomes of a question, and what is refused."""

import copy
import gzip
import json

import pytest

from pixelbert.data.formats import vqa
from pixelbert.data.formats.vqa_files import locate, pair_files, split_of
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError

TEN = [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(["Net ", "net"] * 5, 1)]


def question(question_id, image_id, text="What is it?"):
    return {"image_id": image_id, "question": text, "question_id": question_id}


def annotation(question_id, image_id, **more):
    labels = {"question_type": "what is", "multiple_choice_answer": "net", "answer_type": "other", "answers": TEN}
    return {**labels, "image_id": image_id, "question_id": question_id, **more}


def write(folder, questions, annotations=None, *, subtype="train2014", data_type="mscoco", name=None, end=".json"):
    """The two files under their official names; (question file, annotation file or None)."""
    name = name or f"mscoco_{subtype}"
    head = {"info": {"version": "2.0"}, "data_type": data_type, "data_subtype": subtype, "license": {}}
    contents = {f"v2_OpenEnded_{name}_questions": {**head, "questions": questions}}
    if annotations is not None:
        contents[f"v2_{name}_annotations"] = {**head, "annotations": annotations}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (stem + end) for stem in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        data = json.dumps(content).encode()
        path.write_bytes(gzip.compress(data) if end.endswith(".gz") else data)
    return paths[0], paths[1] if annotations is not None else None


@pytest.mark.parametrize("end", [".json", ".json.gz"])
def test_a_question_becomes_an_example_with_its_answers_as_they_are(tmp_path, end):
    asked, answered = write(tmp_path, [question(25006, 25)], [annotation(25006, 25)], end=end)
    (row,) = vqa.read(asked, annotations=answered)
    assert row == Example(
        "25006", "train", "COCO_train2014_000000000025.jpg", "25", "What is it?", f"{asked}: question_id 25006",
        target={
            "question_id": 25006, "image_id": 25, "question_type": "what is", "answer_type": "other",
            "multiple_choice_answer": "net", "answers": TEN,
        },
        source="vqa", image_number=25,
    )  # fmt: skip


def test_questions_and_annotations_in_different_order(tmp_path):
    rows = [question(i, 1, f"Number {i}?") for i in range(5)]
    asked, answered = write(tmp_path, rows, [annotation(i, 1, multiple_choice_answer=str(i)) for i in (3, 1, 4, 0, 2)])
    found = {row.id: (row.text, row.target["multiple_choice_answer"]) for row in vqa.read(asked, annotations=answered)}
    assert found == {str(i): (f"Number {i}?", str(i)) for i in range(5)}


def test_a_test_split_has_no_answers(tmp_path):
    asked, _ = write(tmp_path, [question(1, 7)], subtype="test-dev2015")
    (row,) = vqa.read(asked)
    assert (row.split, row.image) == ("test-dev", "COCO_test2015_000000000007.jpg")  # its photos are test2015's
    assert row.target == {"question_id": 1, "image_id": 7}


def test_validation_without_answers_is_told_and_training_without_is_refused(tmp_path):
    asked, _ = write(tmp_path / "a", [question(1, 7)], subtype="val2014")
    notes = []
    assert [row.split for row in vqa.read(asked, notes=notes)] == ["val"]
    assert notes == [f"{asked.name} has no annotation file: its questions can be answered, not scored"]
    for options in ({}, {"split": "train"}):
        asked, _ = write(tmp_path / "b", [question(1, 7)])
        with pytest.raises(DataError, match="no annotation file for these questions"):
            list(vqa.read(asked, **options))


def test_other_sets_name_their_images_by_the_number_or_by_a_map(tmp_path):
    asked, answered = write(
        tmp_path, [question(1, 7), question(2, 8)], [annotation(1, 7), annotation(2, 8)],
        subtype="dev", data_type="shapes", name="shapes_dev",
    )  # fmt: skip
    rows = list(vqa.read(asked, annotations=answered))
    assert [(r.image, r.image_number, r.source, r.split) for r in rows] == [
        ("000000000007", 7, "shapes", "val"), ("000000000008", 8, "shapes", "val")
    ]  # fmt: skip
    (tmp_path / "image_ids.json").write_text('{"7": "a/b.jpg"}')
    good, bad = vqa.read(asked, annotations=answered)
    assert (good.image, good.image_id, good.image_number) == ("a/b.jpg", "7", None)
    assert bad == BadRow(str(asked), "question_id 2", f"image_id 8 is not in {tmp_path / 'image_ids.json'}", "val")
    other = tmp_path / "other.json"
    other.write_text('{"7": "c.jpg", "8": "d.jpg"}')
    assert [r.image for r in vqa.read(asked, annotations=answered, image_map=[other])] == ["c.jpg", "d.jpg"]


ONE, TWO = question(1, 5), question(2, 6)
HAS_ONE, HAS_TWO = annotation(1, 5), annotation(2, 6)


@pytest.mark.parametrize(
    ("asked", "answered", "file", "reason"),
    [
        ([ONE], [HAS_ONE, HAS_TWO], 1, "annotation 1: question_id 2 is not a question of"),
        ([ONE, TWO], [HAS_ONE], 0, "question_id 2 has no annotation in"),
        ([ONE, TWO, question(3, 5)], [], 0, "question_id 1 has no annotation in .* and 2 more have none"),
        ([ONE, TWO, ONE], [HAS_ONE, HAS_TWO], 0, "question 2: question_id 1 is repeated; first at question 0"),
        ([ONE], [HAS_ONE, HAS_ONE], 1, "annotation 1: question_id 1 is annotated twice"),
        ([ONE], [annotation(1, 6)], 1, "question_id 1 is about image 6 here, and about image 5 in"),
        ([ONE], [annotation(1, 5, answers=TEN[:9])], 1, "annotation 0: question_id 1 has 9 answers, expected 10"),
        ([ONE], [annotation(1, 5, answers=[])], 1, "question_id 1 has 0 answers, expected 10"),
        ([ONE], [annotation(1, 5, answers="net")], 1, "question_id 1 has no list of answers, expected 10"),
        ([ONE], [annotation(1, 5, answers=[*TEN[:9], {"answer": 3}])], 1, "question_id 1: answer 9 is .* no text"),
        ([ONE], [annotation(1, 5, answer_type=None)], 1, "question_id 1 has no text 'answer_type'"),
        ([{"question": "x", "image_id": 5}], [], 0, "question 0 has no 'question_id'"),
        ([{"question": "x", "question_id": 5}], [], 0, "question 0: question_id 5 has no 'image_id'"),
        ([question("1", 5)], [], 0, "question 0: question_id is '1', no whole number"),
        ([question(True, 5)], [], 0, "question 0: question_id is True, no whole number"),
        ([question(1, 5.5)], [], 0, "question_id 1: image_id is 5.5, no whole number"),
        ([ONE, "two"], [], 0, "question 1: an object was expected, found str"),
        ([ONE], [HAS_ONE, {"image_id": 5}], 1, "annotation 1 has no 'question_id'"),
    ],
)
def test_files_that_do_not_agree_are_refused_with_file_and_record(tmp_path, asked, answered, file, reason):
    paths = write(tmp_path, copy.deepcopy(asked), copy.deepcopy(answered))
    with pytest.raises(DataError, match=reason) as caught:
        list(vqa.read(paths[0], annotations=paths[1]))
    assert str(caught.value).startswith(f"{paths[file]}: ")


@pytest.mark.parametrize("which", [0, 1])
def test_a_file_cut_off_is_named_with_the_byte(tmp_path, which):
    paths = write(tmp_path, [ONE, TWO], [HAS_ONE, HAS_TWO])
    data = paths[which].read_bytes()
    paths[which].write_bytes(data[: len(data) - 40])
    with pytest.raises(DataError, match=f"{paths[which].name}: the JSON is cut off at byte {len(data) - 40}"):
        list(vqa.read(paths[0], annotations=paths[1]))


@pytest.mark.parametrize(
    ("name", "subtype", "split"),
    [
        ("v2_OpenEnded_mscoco_train2014_questions.json", "train2014", "train"),
        ("v2_OpenEnded_mscoco_val2014_questions.json.gz", "", "val"),
        ("v2_OpenEnded_mscoco_test2015_questions.json", "test2015", "test"),
        ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "test-dev2015", "test-dev"),
        ("v2_OpenEnded_mscoco_test-std2015_questions.json", "", "test-std"),
        ("v2_OpenEnded_mscoco_train2014_dev_questions.json", "train2014", "val"),  # the last word counts
        ("v2_OpenEnded_mscoco_train2014_train_questions.json", "train2014", "train"),
        ("easyvqa_dev_questions.json", "test", "val"),  # the name before the content
        ("questions.json", "val2014", "val"),
        ("questions.json", "test-standard2015", "test-std"),
        ("contest_questions.json", "", ""),  # a word inside another is none
        ("questions.json", "abstract", ""),
    ],
)
def test_the_split_is_told_by_the_name_and_then_by_the_content(tmp_path, name, subtype, split):
    data = json.dumps({"questions": [], "data_subtype": subtype}).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert split_of(tmp_path / name) == split


def test_the_option_overrides_the_split(tmp_path):
    asked, answered = write(tmp_path, [ONE], [HAS_ONE])
    assert [row.split for row in vqa.read(asked, annotations=answered, split="val")] == ["val"]


def test_all_splits_of_a_folder_are_paired(tmp_path):
    train = write(tmp_path, [ONE], [HAS_ONE])
    val = write(tmp_path, [TWO], [HAS_TWO], subtype="val2014", end=".json.gz")
    test, _ = write(tmp_path, [ONE], subtype="test2015")
    (tmp_path / "families_train.json").write_text("{}")  # not a file of ours
    assert set(pair_files(locate(tmp_path))) == {train, val, (test, None)}


def test_files_of_other_names_are_paired_by_content_and_split(tmp_path):
    def put(name, key):
        path = tmp_path / name
        path.write_text(json.dumps({key: []}))
        return path

    a, b = put("a.json", "annotations"), put("b.json", "questions")
    assert pair_files([a, b]) == [(b, a)]
    names = ("q_train.json", "q_val.json"), ("x_val.json", "x_train.json")
    asked, answered = [put(n, "questions") for n in names[0]], [put(n, "annotations") for n in names[1]]
    assert pair_files([*answered, *asked]) == [(asked[0], answered[1]), (asked[1], answered[0])]
    assert pair_files([a, b, a, b]) == [(b, a)]
    with pytest.raises(DataError, match="x_val.json: no question file goes with these annotations"):
        pair_files([asked[0], answered[0]])
    other = put("other.json", "images")
    with pytest.raises(DataError, match="other.json: has neither 'questions' nor 'annotations'"):
        pair_files([other])


def test_files_of_one_name_in_two_folders_stay_in_their_folders(tmp_path):
    one, two = (write(tmp_path / name, [ONE], [HAS_ONE]) for name in ("one", "two"))
    assert set(pair_files([one[0], two[0], two[1], one[1]])) == {one, two}


def test_the_annotations_of_a_lone_question_file_are_found_beside_it(tmp_path):
    asked, answered = write(tmp_path, [ONE], [HAS_ONE])
    write(tmp_path, [TWO], [HAS_TWO], subtype="val2014")
    assert pair_files([asked]) == [(asked, answered)]
