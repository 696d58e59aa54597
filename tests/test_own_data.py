"""docs/own-data.md: its tables and commands, run as they stand with a model of a few weights and drawn pictures."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pixelbert.cli import main
from pixelbert.data.records import PreparedData
from pixelbert.recipes.schema import load_recipe
from tiny_runs import BASE, tiny_data, tiny_recipe
from tiny_tasks import picture

_PHOTOS = ("kitchen", "rider", "giraffe", "beach", "dog", "bus")
_BLOCK = re.compile(r"(?:`([\w./-]+)`[^\n`]*:\n\n)?```(csv|json|sh|text)\n(.*?)```", flags=re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Drawn photos, and a pretraining run of a few steps where the examples look for one; the commands run here."""
    from pixelbert.training.loop import train

    folder = tmp_path_factory.mktemp("own")
    train(
        tiny_recipe("validation.times=0", "schedule.pairs=8"), tiny_data(folder / "flickr8k"), folder / "runs/flickr8k"
    )
    for seed, name in enumerate(_PHOTOS):
        picture(folder / "photos" / f"{name}.jpg", seed)
    for name in ("vqa", "nlvr2", "nlvr", "retrieval"):
        own = load_recipe(f"{name}-small").model_dump(mode="json")  # what the task's own settings are stays
        task = own["task"]
        kept = [f"{key}={json.dumps(own[key])}" for key in ("head", "ranking")]
        small = ("schedule.pairs=16", "validation.shortlist=0", "ranking.negatives=3", f"task={task}")
        recipe = load_recipe("pretrain-tiny", [*BASE.split(" "), *kept, *small])
        (folder / f"{name}-small.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def sections(text: str) -> dict[str, list[tuple[str, str, str]]]:
    """{heading: [(file, kind, content)]} of the blocks of each section."""
    parts = re.split(r"^##+ (.+)\n", text, flags=re.M)
    return {name: _BLOCK.findall(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


WITH_COMMANDS = ("Questions", "Statements about two pictures", "Statements about one picture", "Pictures by sentence")


def test_every_section_with_commands_is_run(repository: Path) -> None:
    found = sections((repository / "docs" / "own-data.md").read_text(encoding="utf-8"))
    assert [name for name, blocks in found.items() if any(kind == "sh" for _, kind, _ in blocks)] == [*WITH_COMMANDS]


@pytest.mark.parametrize("section", WITH_COMMANDS)
def test_the_commands_of_the_documentation(repository: Path, place: Path, section: str) -> None:
    blocks = sections((repository / "docs" / "own-data.md").read_text(encoding="utf-8"))[section]
    for file, kind, content in blocks:
        if kind in ("csv", "json"):
            assert file.startswith("photos/")
            (place / file).write_text(content, encoding="utf-8")
    for _, _, content in (block for block in blocks if block[1] == "sh"):
        for line in content.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "pixelbert"
            if arguments[0] == "train":
                arguments[1] = f"{arguments[1]}.yaml"
            assert main(arguments) == 0, line
    expected = [line for _, kind, content in blocks if kind == "text" for line in content.split()]
    assert expected
    assert [name for name in expected if not (place / name).is_file()] == []


def test_what_the_documentation_says_of_the_files(repository: Path, place: Path) -> None:
    """After the commands above."""
    answers = json.loads((place / "answers.json").read_text())
    assert [row["question_id"] for row in answers] == ["new:2", "new:3"]
    listed = json.loads((place / "runs/questions/config.json").read_text())["id2label"].values()
    assert set(listed) == {"yes", "no", "white", "moped", "1", "2"}  # of the training questions alone
    assert {row["answer"] for row in answers} <= set(listed)
    assert "pairs:6," in (place / "judged.csv").read_text()
    figures = json.loads((place / "runs/questions/evaluation/val/figures.json").read_text())["figures"]
    assert {"vqa_score", "vqa_score_blind", "vqa_score_gain_blind"} <= set(figures)
    several = PreparedData(place / "data/several").split("train")
    assert [len(several.target(record)["answers"]) for record in range(3)] == [3, 4, 1]
    pictures = {run: json.loads((place / f"runs/{run}/config.json").read_text())["num_images"]
                for run in ("pairs", "statements")}  # fmt: skip
    assert pictures == {"pairs": 2, "statements": 1}
