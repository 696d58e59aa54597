"""Wrong input of the downstream tasks, through the command line: one sentence, the right exit code, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixelbert.cli import main
from pixelbert.training.loop import train
from tiny_tasks import picture, task_data, task_recipe, write_nlvr2, write_vqa

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`pixelbert ...`: its exit code and the last line of stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if line.startswith("pixelbert: ")]
        assert len(lines) <= 1
        return code, (lines or [""])[-1]

    return call


def changed(path: Path, change: Callable[[list[Any]], object], key: str) -> None:
    content = json.loads(path.read_text())
    change(content[key])
    path.write_text(json.dumps(content))


VQA = [  # (which file, its list, change, what is said)
    ("v2_tiny_val_annotations.json", "annotations", lambda rows: rows.append({**rows[0], "question_id": 999}),
     "annotation 12: question_id 999 is not a question of"),
    ("v2_tiny_val_annotations.json", "annotations", lambda rows: rows.pop(),
     "v2_OpenEnded_tiny_val_questions.json: question_id 132 has no annotation in"),
    ("v2_OpenEnded_tiny_val_questions.json", "questions", lambda rows: rows.append(rows[0]),
     "question 12: question_id 100 is repeated; first at question 0"),
    ("v2_tiny_train_annotations.json", "annotations", lambda rows: rows.append(rows[3]),
     "annotation 27: question_id 40 is annotated twice"),
    ("v2_tiny_train_annotations.json", "annotations", lambda rows: rows[3]["answers"].pop(),
     "annotation 3: question_id 40 has 9 answers, expected 10"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key", "change", "reason"), VQA)
def test_official_questions_that_do_not_agree(
    tmp_path: Path, command: Command, file: str, key: str, change: Callable[[list[Any]], object], reason: str
) -> None:
    source = write_vqa(tmp_path / "vqa")
    changed(source / file, change, key)
    code, line = command("prepare", "vqa", source, "--out", tmp_path / "out")
    assert code == 3 and reason in line and str(source) in line
    assert [path.name for path in tmp_path.iterdir()] == ["vqa"]


@pytest.mark.parametrize(
    ("write", "format", "image", "reason"),
    [
        (write_vqa, "vqa", "000000000002.png",
         "v2_OpenEnded_tiny_train_questions.json: question_id 20: image '000000000002' not found in"),
        (write_nlvr2, "nlvr2", "dev-1-2-img0.png",
         "dev.json: line 5, dev-1-2-0: left image 'dev-1-2-img0.png' not found in"),
        (write_nlvr2, "nlvr2", "train-1-0-img1.png",
         "train.json: line 1, train-1-0-0: right image 'train-1-0-img1.png' not found in"),
    ],
)  # fmt: skip
def test_an_image_that_is_missing(
    tmp_path: Path, command: Command, write: Callable[[Path], Path], format: str, image: str, reason: str
) -> None:
    source = write(tmp_path / "source")
    (source / "images" / image).unlink()
    code, line = command("prepare", format, source, "--out", tmp_path / "out")
    assert code == 3 and reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


OWN = [
    ("q.csv", "image,question\na.png,Who?\n", "q.csv: line 1: no column 'answer' or 'answers'; found: image, question"),
    ("q.csv", "image,question,split\na.png,Who?,\n",
     "q.csv: line 2: no column 'answer' or 'answers'; found: image, question, split; a question of split 'train'"),
    ("q.csv", "image,answer\na.png,me\n", "q.csv: line 1: no column 'question'; found: image, answer"),
    ("p.csv", "left,text,label\na.png,same,yes\n", "p.csv: line 1: no column 'right'; found: left, text, label"),
    ("p.csv", "left,right,text,label\na.png,b.png,same,yes\na.png,,same,no\n", "p.csv: line 3: names no right image"),
    ("p.csv", "left,right,text,label\na.png,b.png,x,True\na.png,b.png,y,yes\na.png,b.png,z,TRUE\n",
     "p.csv: labels are spelled in 3 ways: 'True' (line 2), 'yes' (line 3), 'TRUE' (line 4)"),
    ("p.jsonl", '{"left": "a.png", "right": "b.png", "text": "x", "label": "maybe"}\n',
     "p.jsonl: line 1: the label is 'maybe', expected true/false or yes/no or 1/0"),
    ("q.jsonl", '{"image": "a.png", "question": "Who?", "answers": []}\n',
     "q.jsonl: no row can be used; the first: line 1: has no answer"),
    ("q.csv", "question_id,image,question,answer\n1,a.png,Who?,me\n1,b.png,Who?,you\n",
     "q.csv: line 3: id '1' is repeated in split train; first at"),
    ("q.csv", "image,question,answer\na.png,Who?,me\nlost.png,Who?,you\n",
     "q.csv: line 3: image 'lost.png' not found in"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), OWN)
def test_tables_of_ones_own(tmp_path: Path, command: Command, name: str, content: str, reason: str) -> None:
    for seed, photo in enumerate("ab"):
        picture(tmp_path / "own" / f"{photo}.png", seed)
    (tmp_path / "own" / name).write_text(content)
    code, line = command("prepare", name.rpartition(".")[2], tmp_path / "own" / name, "--out", tmp_path / "out")
    assert code == 3 and reason in line
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_an_image_with_no_caption_is_left_out_and_listed(tmp_path: Path, command: Command) -> None:
    """Of pairs a bad row is told and left out; `--max-bad 0` makes it an error."""
    images = []
    for number, sentences in enumerate((["a dog", "a cat"], [], ["a bird"])):
        picture(tmp_path / "k" / f"{number}.png", number)
        own = [{"raw": text, "sentid": 10 * number + i} for i, text in enumerate(sentences)]
        images.append({"filename": f"{number}.png", "split": "train", "sentences": own})
    (tmp_path / "k" / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    prepare = ("prepare", "karpathy", tmp_path / "k", "--out", tmp_path / "out")
    code, line = command(*prepare, "--max-bad", "0")
    assert code == 3 and "dataset_flickr8k.json: image 1: '1.png' has no sentence" in line
    assert [path.name for path in tmp_path.iterdir()] == ["k"]
    assert command(*prepare) == (0, "")
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert row["place"] == "image 1" and row["reason"] == "'1.png' has no sentence"


# -- models and files that do not belong together ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vqa and nlvr2: data; few and many: runs with 3 and 7 answers; recipe.yaml."""
    folder = tmp_path_factory.mktemp("bad")
    task_data(folder / "vqa", "question_answering")
    task_data(folder / "nlvr2", "image_pairs")
    for name, count in (("few", 3), ("many", 1)):
        recipe = task_recipe("question_answering", f"answers.min_count={count}", "train.save_steps=3")
        train(recipe, folder / "vqa/data", folder / name)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return folder


def contents(run: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_an_answer_list_of_another_model(folder: Path, tmp_path: Path, command: Command) -> None:
    run = shutil.copytree(folder / "few", tmp_path / "run")
    shutil.copy(folder / "many" / "config.json", run / "config.json")
    before = contents(run)
    data = folder / "vqa/data"
    code, line = command("evaluate", run, "--data", data)
    assert code == 5 and str(run) in line and "head" in line
    code, line = command("predict", run, "--data", data, "--split", "val", "--out", tmp_path / "answers.json")
    assert code == 5 and not (tmp_path / "answers.json").exists()
    code, line = command("train", folder / "few.yaml", "--data", data, "--out", run, "--resume")
    assert code == 5 and "another model" in line
    assert contents(run) == before


def test_data_of_another_task_or_of_another_number_of_pictures(folder: Path, tmp_path: Path, command: Command) -> None:
    code, line = command("evaluate", folder / "few", "--data", folder / "nlvr2/data")
    assert code == 3 and "prepared for nlvr2, question_answering needs questions with answers" in line
    recipe = task_recipe("image_pairs", "validation.times=0", "schedule.pairs=8")
    train(recipe, folder / "nlvr2/data", tmp_path / "run")
    rows = [{"image": "dev-1-0-img0.png", "text": f"text {i}", "label": bool(i), "split": "val"} for i in range(2)]
    table = folder / "nlvr2" / "images" / "one.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command("prepare", "jsonl", table, "--out", tmp_path / "one") == (0, "")
    code, line = command("evaluate", tmp_path / "run", "--data", tmp_path / "one")
    told = f"{tmp_path / 'one'}: split 'val': statement one:1: is about 1 picture(s), the model about 2"
    assert code == 3 and told in line


def test_a_held_out_question_without_answers_is_told_before_training(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    source = shutil.copytree(folder / "vqa", tmp_path / "vqa", ignore=shutil.ignore_patterns("data"))
    (source / "v2_tiny_val_annotations.json").unlink()
    assert command("prepare", "vqa", source, "--out", tmp_path / "data") == (0, "")
    code, line = command("train", folder / "few.yaml", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert code == 3 and "data: split 'val': question 100: has no answers" in line
    assert not (tmp_path / "run").exists()


def test_no_answer_is_frequent_enough(folder: Path, tmp_path: Path, command: Command) -> None:
    code, line = command("train", folder / "few.yaml", "--data", folder / "vqa/data", "--out", tmp_path / "run",
                         "answers.min_count=50")  # fmt: skip
    assert code == 3 and "no answer is given to at least 50 of the 27 training questions with answers" in line
    assert not (tmp_path / "run").exists()
