"""Own tables: the columns say the task; questions and statements in CSV and JSON lines."""

import json

import pytest

from pixelbert.data.formats import tabular
from pixelbert.data.formats.columns import missing_column, task_of
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError


def csv_file(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def jsonl_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def targets(rows):
    return [row.target for row in rows if isinstance(row, Example)]


@pytest.mark.parametrize(
    ("columns", "task", "missing"),
    [
        ("image text", "pairs", ()),
        ("image text split id", "pairs", ()),
        ("image question answer", "vqa", ()),
        ("image question answers", "vqa", ()),
        ("image question answer answers text", "vqa", ()),
        ("image text question", "pairs", ()),  # a question that nobody answered is an extra column
        ("image text label", "nlvr", ()),
        ("left right text label", "nlvr2", ()),
        ("left right image text", "pairs", ()),
        ("image question", "vqa", ("answer", "answers")),
        ("image question split", "vqa", ()),
        ("image answer", "vqa", ("question",)),
        ("question answer", "vqa", ("image",)),
        ("left right text", "nlvr2", ("label",)),
        ("left text label", "nlvr2", ("right",)),
        ("right text label", "nlvr2", ("left",)),
        ("left right label", "nlvr2", ("text",)),
        ("image label", "nlvr", ("text",)),
        ("image", "pairs", ("text",)),
        ("text", "pairs", ("image",)),
        ("", "pairs", ("image",)),
    ],
)
def test_the_columns_say_the_task_and_what_is_missing(columns, task, missing):
    assert task_of(columns.split()) == task
    assert missing_column(columns.split(), "") == missing
    assert missing_column(columns.split(), "val") == missing


def test_a_table_to_predict_on_needs_no_answer_and_no_label():
    for split in ("test", "test-dev", "test-std"):
        assert missing_column(["image", "question"], split) == ()
        assert missing_column(["left", "right", "text"], split) == ()
    assert missing_column(["question"], "test") == ("image",)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("image,question,split_", "no column 'answer' or 'answers'; found: image, question, split_"),
        ("left,text,label", "no column 'right'; found: left, text, label"),
        ("picture,question,answer", "no column 'image'; found: picture, question, answer"),
        ("image;question;answer;answer", "two columns are called 'answer'"),
    ],
)
def test_a_missing_column_is_named_with_those_found(tmp_path, header, reason):
    path = csv_file(tmp_path / "mine.csv", header, "a,b,c")
    with pytest.raises(DataError, match=f"mine.csv: line 1: {reason}"):
        list(tabular.read_csv(path))
    with pytest.raises(DataError, match=f"mine.csv: line 1: {reason}"):
        tabular.task_of_csv(path)


def test_jsonl_names_the_missing_column_too(tmp_path):
    path = jsonl_file(tmp_path / "a.jsonl", {"image": "a.jpg", "text": "x"}, {"image": "b", "text": "y", "label": 1})
    with pytest.raises(DataError, match="line 1: no column 'label'; found: image, text"):  # not taken for pairs
        list(tabular.read_jsonl(path))
    path = jsonl_file(tmp_path / "b.jsonl", {"image": "a", "question": "x", "answer": "y"}, {"image": "b"})
    assert list(tabular.read_jsonl(path))[1] == BadRow(str(path), "line 2", "no column 'question'; found: image")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("image question", "no column 'answer' or 'answers'; found: image, question, split; a question"),
        ("left right text", "no column 'label'; found: left, right, text, split; a statement"),
    ],
)
def test_a_column_that_no_row_has_is_named_where_a_split_needs_it(tmp_path, columns, reason):
    names = [*columns.split(), "split"]
    rows = [[*"abc"[: len(names) - 1], split] for split in ("test", "dev", "train")]
    table = csv_file(tmp_path / "mine.csv", ",".join(names), *map(",".join, rows))
    lines = jsonl_file(tmp_path / "mine.jsonl", *(dict(zip(names, row, strict=True)) for row in rows))
    with pytest.raises(DataError, match=f"mine.csv: line 3: {reason} of split 'val' needs one$"):
        list(tabular.read_csv(table))
    with pytest.raises(DataError, match=f"mine.jsonl: line 2: {reason} of split 'val' needs one$"):
        list(tabular.read_jsonl(lines))
    jsonl_file(lines, *({"label": "yes", "answer": "yes", **dict(zip(names, row, strict=True))} for row in rows[:1]),
               dict(zip(names, rows[1], strict=True)))  # fmt: skip
    assert [row.reason[:7] for row in list(tabular.read_jsonl(lines))[1:]] == ["has no "]  # one row alone lacks it
    csv_file(table, ",".join(names), ",".join(rows[0]))
    assert len(targets(tabular.read_csv(table))) == 1


def test_a_row_that_names_no_split_is_for_training_and_needs_the_column(tmp_path):
    path = csv_file(tmp_path / "mine.csv", "image,q,split", "a.jpg,Who?,")
    reason = "line 2: no column 'answer' or 'answers'; found: image, q, split; a question of split 'train' needs one"
    with pytest.raises(DataError, match=reason):
        list(tabular.read_csv(path, columns={"question": "q"}))


def test_a_question_with_its_answers(tmp_path):
    rows = [
        "question_id,image,question,answers,answer_type,question_type",
        "17,a.jpg,What is it?,A net| net |2| net,other,what is",
        'q-b,b.jpg,How many?,"[""2"", 3, ""a|b""]",,',
    ]
    path = csv_file(tmp_path / "mine.csv", *rows)
    assert tabular.task_of_csv(path) == "vqa"
    one, two = tabular.read_csv(path)
    answers = [{"answer": a, "answer_id": i} for i, a in enumerate(["A net", "net", "2", "net"], 1)]
    assert one == Example(
        "17", "", "a.jpg", "a.jpg", "What is it?", f"{path}: line 2", source="mine",
        target={"question_id": 17, "image_id": "a.jpg", "answer_type": "other", "question_type": "what is",
                "answers": answers, "multiple_choice_answer": "net"},
    )  # fmt: skip
    assert two.target == {
        "question_id": "q-b", "image_id": "b.jpg", "multiple_choice_answer": "2",
        "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(["2", "3", "a|b"], 1)],
    }  # fmt: skip


def test_the_csv_and_the_json_lines_of_the_same_questions_agree(tmp_path):
    table = csv_file(tmp_path / "mine.csv", "id,image,question,answers,answer", "7,a.jpg,Who?,me|you|you,me")
    row = {"id": 7, "image": "a.jpg", "question": "Who?", "answers": ["me", "you", "you"], "answer": "me"}
    lines = jsonl_file(tmp_path / "mine.jsonl", row)
    (one,), (two,) = tabular.read_csv(table), tabular.read_jsonl(lines)
    assert one.target == two.target
    assert one.target["multiple_choice_answer"] == "me"  # said outright, not counted
    assert (one.id, two.id) == ("7", "7")


def test_ids_that_only_look_like_numbers_stay_text(tmp_path):
    rows = [f"{name},a.jpg,Who?,me" for name in ("007", "12", "", "1.0")]
    path = csv_file(tmp_path / "mine.csv", "question_id,image,question,answer", *rows)
    assert [t["question_id"] for t in targets(tabular.read_csv(path))] == ["007", 12, "mine:4", "1.0"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": ""}, "has no answer"),
        ({"answers": []}, "has no answer"),
        ({"answer": None, "answers": "  "}, "has no answer"),
        ({"answers": "yes||no"}, "an answer is empty"),
        ({"answers": ["yes", ""]}, "an answer is empty"),
        ({"answers": ["yes", None]}, "an answer is None, no text"),
        ({"answer": True}, "an answer is True, no text"),
        ({"answers": {"a": 1}}, "an answer is {'a': 1}, no text"),
        ({"answers": '["yes'}, "its answers begin with '[' and are no JSON list"),
        ({"answer": "x", "image": ""}, "names no image"),
        ({"answer": "x", "split": "trian"}, "unknown split 'trian'"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path, row, reason):
    good = {"image": "a.jpg", "question": "Who?", "answer": "me"}
    path = jsonl_file(tmp_path / "mine.jsonl", good, {"image": "a.jpg", "question": "Who?", **row})
    found = list(tabular.read_jsonl(path))[1]
    assert isinstance(found, BadRow)
    assert (found.place, found.reason[: len(reason)]) == ("line 2", reason)


def test_rows_of_a_test_split_need_no_answer_and_no_label(tmp_path):
    path = csv_file(tmp_path / "mine.csv", "image,question,answer,split", "a.jpg,Who?,,test", "a.jpg,Who?,,val")
    rows = list(tabular.read_csv(path))
    assert rows[0].target == {"question_id": "mine:2", "image_id": "a.jpg"}
    assert rows[1] == BadRow(str(path), "line 3", "has no answer", "val")
    path = csv_file(tmp_path / "test.csv", "left,right,text", "a.jpg,b.jpg,Same.")
    assert targets(tabular.read_csv(path)) == [{"identifier": "test:2"}]
    with pytest.raises(DataError, match="line 1: no column 'label'; found: left, right, text"):
        list(tabular.read_csv(path, split="val"))


def test_statements_about_one_and_two_images(tmp_path):
    path = csv_file(tmp_path / "mine.csv", "id,left,right,text,label", "s1,a.jpg,b.jpg,Same.,yes", ",b.jpg,b.jpg,x,NO")
    one, two = tabular.read_csv(path)
    assert (one.image, one.image2, one.target) == ("a.jpg", "b.jpg", {"identifier": "s1", "label": True})
    assert two.target == {"identifier": "mine:3", "label": False}
    assert tabular.task_of_csv(path) == "nlvr2"
    path = jsonl_file(tmp_path / "mine.jsonl", {"image": "a.jpg", "text": "x", "label": False})
    (row,) = tabular.read_jsonl(path)
    assert (row.image, row.image2, row.target["label"]) == ("a.jpg", None, False)
    assert tabular.task_of_jsonl(path) == "nlvr"


@pytest.mark.parametrize(
    ("row", "reason"),
    [("a.jpg,,x,true", "names no right image"), (",b.jpg,x,true", "names no left image"), ("a,b,x,", "has no label")],
)
def test_statements_that_cannot_be_used(tmp_path, row, reason):
    path = csv_file(tmp_path / "mine.csv", "left,right,text,label", row, "a.jpg,b.jpg,x,true")
    assert next(iter(tabular.read_csv(path))) == BadRow(str(path), "line 2", reason)


def test_a_label_spelled_three_ways_is_told_with_its_rows(tmp_path):
    rows = [f"a.jpg,x,{label}" for label in ("True", "FALSE", "True", "yes", "TRUE")]
    path = csv_file(tmp_path / "mine.csv", "image,text,label", *rows)
    told = "'True' .line 2., 'FALSE' .line 3., 'yes' .line 5., 'TRUE' .line 6."
    with pytest.raises(DataError, match=f"mine.csv: labels are spelled in 4 ways: {told}"):
        list(tabular.read_csv(path))
    path = csv_file(tmp_path / "mine.csv", "image,text,label", "a.jpg,x,true", "a.jpg,x,perhaps")
    with pytest.raises(DataError, match="mine.csv: line 3: the label is 'perhaps'"):
        list(tabular.read_csv(path))


def test_columns_of_other_names(tmp_path):
    path = csv_file(tmp_path / "mine.csv", "photo;q;reply", "a.jpg;Who?;me, you")
    columns = {"image": "photo", "question": "q", "answer": "reply"}
    assert tabular.task_of_csv(path, columns=columns) == "vqa"
    (row,) = tabular.read_csv(path, columns=columns)
    assert row.target["answers"] == [{"answer": "me, you", "answer_id": 1}]
    with pytest.raises(DataError, match="line 1: no column 'replies'; found: photo, q, reply"):
        list(tabular.read_csv(path, columns={"image": "photo", "question": "q", "answers": "replies"}))
