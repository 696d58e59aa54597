"""The recipes of Tables 2 to 5 against the paper, written down by hand from Section 4.2 and the tables themselves."""

from __future__ import annotations

import pytest

from pixelbert.recipes.listing import list_recipes
from pixelbert.recipes.schema import load_recipe

# name: task, epochs, where the rate falls to a tenth, batch, splits trained on, what Tables 2 to 5 say
PAPER = {
    "vqa-r50": ("question_answering", 18, [12, 16], 256, ["train", "val"], ["71.35", "71.42"]),
    "vqa-x152": ("question_answering", 18, [12, 16], 256, ["train", "val"], ["74.45", "74.55"]),
    "nlvr2-r50": ("image_pairs", 18, [12, 16], 128, ["train"], ["71.7", "72.4"]),
    "nlvr2-x152": ("image_pairs", 18, [12, 16], 128, ["train"], ["76.5", "77.2"]),
    "retrieval-flickr30k-r50": (
        "retrieval", 10, [6], 512, ["train"], ["75.7/94.7/97.1", "59.8/85.5/91.6"],
    ),
    "retrieval-flickr30k-x152": (
        "retrieval", 10, [6], 512, ["train"], ["87.0/98.9/99.5", "71.5/92.1/95.8"],
    ),
    "retrieval-coco-r50": (
        "retrieval", 4, [2], 512, ["train", "restval"],
        ["77.8/95.4/98.2", "64.1/91.0/96.2", "53.4/80.4/88.5", "41.1/69.7/80.5"],
    ),
    "retrieval-coco-x152": (
        "retrieval", 4, [2], 512, ["train", "restval"], ["84.9/97.7/99.3", "71.6/93.7/97.4", "63.6", "50.1"],
    ),
}  # fmt: skip
SECTIONS = {
    "vqa": ("4.2.1", "Table 2"), "nlvr2": ("4.2.2", "Table 3"), "retrieval-flickr30k": ("4.2.3", "Table 4"),
    "retrieval-coco": ("4.2.3", "Table 5"),
}  # fmt: skip
every_recipe = pytest.mark.parametrize("name", PAPER)


@every_recipe
def test_lengths_and_batches_are_the_papers(name: str) -> None:
    task, epochs, milestones, batch, splits, _ = PAPER[name]
    recipe = load_recipe(name)
    schedule = recipe.schedule
    assert recipe.task == task
    assert (schedule.epochs, schedule.pairs) == (epochs, None)
    assert (schedule.decay, schedule.milestones, schedule.factor) == ("milestones", milestones, 0.1)
    assert recipe.optim.batch_size == batch
    assert recipe.data.train_splits == splits
    assert recipe.data.val_split == "val" and "test" not in splits
    assert (recipe.data.held_out_images > 0) == ("val" in splits)


@every_recipe
def test_the_network_is_the_one_pretrained(name: str) -> None:
    recipe, pretrained = load_recipe(name), load_recipe(f"pretrain-{name.rpartition('-')[2]}")
    for section in ("backbone", "text", "visual", "image"):
        own, theirs = getattr(recipe, section).model_dump(), getattr(pretrained, section).model_dump()
        changed = {key for key in own if own[key] != theirs[key]}
        assert changed == ({"frozen_stages"} if section == "backbone" and recipe.task == "retrieval" else set())
    assert recipe.contrastive_size == recipe.loss.contrastive == 0 and recipe.phases == []
    assert recipe.image.augment == "none" and not recipe.head.image_type and not recipe.head.sample_pixels
    assert f"--from runs/{pretrained.name}" in recipe.command


@every_recipe
def test_the_optimizers_are_those_of_pretraining(name: str) -> None:
    optim = load_recipe(name).optim
    assert (optim.text.lr, optim.text.weight_decay, optim.text.new_lr) == (1e-4, 1e-2, None)
    assert (optim.cnn.name, optim.cnn.lr, optim.cnn.weight_decay, optim.cnn.momentum) == ("sgd", 1e-2, 5e-4, 0.9)
    assert optim.clip_norm == (10 if name.startswith("retrieval") else 4)


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith("retrieval")])
def test_retrieval_ranks_twenty_and_learns_from_five_with_the_cnn_frozen(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.ranking.negatives, recipe.ranking.hard_negatives) == (20, 5)
    assert recipe.backbone.frozen_stages >= 4 and recipe.train.keep_frozen_features
    assert recipe.optim.batch_size == 8 * recipe.optim.micro_batch  # 64 on each of 8 devices
    assert recipe.data.texts_per_image == 1 and recipe.validation.shortlist == 0


def test_vqa_has_the_official_answers_and_head() -> None:
    recipe = load_recipe("vqa-r50")
    assert (recipe.answers.min_count, recipe.answers.normalize, recipe.head.dropout) == (9, True, 0.5)
    assert recipe.data.texts_per_image > 1  # questions about one image share its CNN pass


@every_recipe
def test_the_list_tells_section_table_and_score(name: str) -> None:
    facts = next(facts for facts in list_recipes() if facts["name"] == name)
    section, table = SECTIONS[name.rpartition("-")[0]]
    assert section in facts["paper"] and table in facts["paper"]
    assert "(from the paper)" in facts["expected"]
    for figure in PAPER[name][-1]:
        assert figure in facts["expected"]
    assert facts["needs"] and "torchrun" in facts["command"]


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_every_task_has_its_three_sizes(task: str) -> None:
    names = {facts["name"] for facts in list_recipes()}
    assert {f"{task}-tiny", f"{task}-small"} <= names
    assert any(name.startswith(task) and name.endswith("-r50") for name in names)
    assert load_recipe(f"{task}-tiny").task == load_recipe(f"{task}-small").task
