"""Recipes: typed, inherited, changed by key=value, refused with the nearest name; the paper's values in its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pixelbert.errors import UsageError
from pixelbert.recipes.schema import Loss, Phase, Recipe, load_recipe, recipe_names, setting_names


def write(folder: Path, file: str, **values: Any) -> Path:
    path = folder / file
    path.write_text(yaml.safe_dump(values))
    return path


# -- the shipped recipes ---------------------------------------------------------------------------------------------


def test_the_recipes_of_the_package() -> None:
    assert set(recipe_names()) >= {
        "pretrain-r50", "pretrain-x152", "pretrain-clip-r50x4", "pretrain-small", "pretrain-tiny",
    }  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_tells_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    for fact in ("description", "paper", "needs", "command", "expected"):
        assert getattr(recipe, fact)
    assert f" train {name} " in recipe.command
    first = (Path(__file__).parents[2] / "src/pixelbert/recipes" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# pixelbert train {name} --data DATA --out RUN") or "data/" in first


@pytest.mark.parametrize(
    ("name", "backbone", "shorter", "longer"),
    [("pretrain-r50", "resnet50", 800, 1333), ("pretrain-x152", "resnext152_32x8d", 600, 1000)],
)
def test_the_papers_recipes_hold_the_papers_values(name: str, backbone: str, shorter: int, longer: int) -> None:
    recipe = load_recipe(name)
    # Section 4.1, word by word
    assert (recipe.backbone.name, recipe.visual.pool) == (backbone, True)
    assert (recipe.image.shorter, recipe.image.longer, recipe.image.square) == (shorter, longer, None)
    assert (recipe.text.weights, recipe.text.vocab) == ("bert-base-uncased", None)
    assert recipe.visual.num_sampled_pixels == 100
    assert (recipe.optim.cnn.name, recipe.optim.cnn.lr, recipe.optim.cnn.weight_decay) == ("sgd", 1e-2, 5e-4)
    assert (recipe.optim.text.lr, recipe.optim.text.weight_decay) == (1e-4, 1e-2)
    assert recipe.optim.batch_size == 4096
    assert (recipe.schedule.epochs, recipe.schedule.pairs) == (40, None)
    assert (recipe.schedule.decay, recipe.schedule.milestones, recipe.schedule.factor) == ("milestones", [25, 35], 0.1)
    # Section 3.3
    assert (recipe.mlm.probability, recipe.itm.negative_ratio) == (0.15, 0.5)
    assert (recipe.loss.mlm, recipe.loss.itm) == (1, 1)
    assert not recipe.mlm.on_negatives
    # nothing of what goes beyond the paper
    assert recipe.loss.contrastive == recipe.contrastive_size == recipe.itm.hard_share == 0
    assert not recipe.mlm.whole_word and recipe.image.augment == "none" and recipe.phases == []
    assert (recipe.visual.position, recipe.visual.layer_norm, recipe.visual.projection) == ("none", False, "linear")


def test_where_the_paper_is_silent_the_defaults_are_those_agreed_on() -> None:
    recipe = load_recipe("pretrain-r50")
    assert (recipe.backbone.norm, recipe.backbone.frozen_stages) == ("frozen", 1)
    assert recipe.backbone.weights == "timm:resnet50.tv_in1k"
    assert recipe.data.texts_per_image == 4
    assert (recipe.text.max_length, recipe.text.dropout) == (32, 0.1)
    assert recipe.text.type_embedding and recipe.visual.type_embedding_init == "bert"
    assert recipe.image.size_divisor == 64
    assert (recipe.optim.cnn.momentum, recipe.optim.text.betas, recipe.optim.text.eps) == (0.9, (0.9, 0.999), 1e-6)
    assert (recipe.optim.no_decay, recipe.optim.clip_norm, recipe.optim.cnn_params) == (True, 10, "backbone")
    assert (recipe.schedule.warmup_steps, recipe.schedule.warmup_start) == (1000, pytest.approx(1 / 3))
    assert (recipe.train.precision, recipe.optim.scale_lr) == ("auto", True)


def test_every_open_choice_of_pretraining_is_one_setting() -> None:
    """The paper leaves these open: a name here, a default in the schema."""
    assert set(setting_names()) >= {
        "text.weights",
        "text.activation",
        "text.type_embedding",
        "text.dropout",
        "text.max_length",
        "visual.projection",
        "visual.layer_norm",
        "visual.type_embedding_init",
        "visual.position",
        "visual.num_sampled_pixels",
        "backbone.norm",
        "backbone.frozen_stages",
        "backbone.weights",
        "backbone.name",
        "image.shorter",
        "image.longer",
        "image.size_divisor",
        "image.augment",
        "data.texts_per_image",
        "mlm.probability",
        "mlm.whole_word",
        "mlm.on_negatives",
        "itm.negative_ratio",
        "loss.mlm",
        "loss.itm",
        "optim.cnn.momentum",
        "optim.text.betas",
        "optim.no_decay",
        "optim.cnn_params",
        "optim.clip_norm",
        "optim.scale_lr",
        "schedule.warmup_steps",
        "schedule.milestones",
        "train.precision",
    }


# -- key=value -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("optim.cnn.lr=1e-3", "optim.cnn.lr", 1e-3),
        ("optim.cnn.lr=0.001", "optim.cnn.lr", 1e-3),
        ("schedule.milestones=[3, 5.5]", "schedule.milestones", [3, 5.5]),
        ("optim.text.betas=[0.9,0.98]", "optim.text.betas", (0.9, 0.98)),
        ("optim.text.new_lr=null", "optim.text.new_lr", None),
        ("backbone.weights=", "backbone.weights", None),
        ("backbone.weights=timm:resnet50.a1_in1k", "backbone.weights", "timm:resnet50.a1_in1k"),
        ("text.vocab='a=b.txt'", "text.vocab", "a=b.txt"),
        ("train.trackers=[]", "train.trackers", []),
        ("mlm.whole_word=true", "mlm.whole_word", True),
        ("image.square=224", "image.square", 224),
        ("name=other", "name", "other"),
        ("data={texts_per_image: 2}", "data.texts_per_image", 2),
        ("phases=[{until: 0.5, lr_scale: 0.1}, {until: 1}]", "phases", [Phase(until=0.5, lr_scale=0.1), Phase()]),
    ],
)
def test_one_setting_is_changed_by_its_dotted_name(change: str, key: str, value: Any) -> None:
    before, after = load_recipe("pretrain-r50"), load_recipe("pretrain-r50", [change])
    changed: Any = after
    for part in key.split("."):
        changed = getattr(changed, part)
    assert changed == value

    def flat(recipe: Recipe) -> dict[str, Any]:
        return {name: _get(recipe, name) for name in setting_names()}

    differing = {name for name, old in flat(before).items() if flat(after)[name] != old}
    assert differing <= {key}


def _get(recipe: Recipe, name: str) -> Any:
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_a_section_given_as_a_whole_keeps_its_other_settings() -> None:
    recipe = load_recipe("pretrain-small", ["optim.text={lr: 0.5}"])
    assert recipe.optim.text.lr == 0.5
    assert recipe.optim.text.new_lr == load_recipe("pretrain-small").optim.text.new_lr


def test_of_epochs_and_pairs_the_one_given_last_holds() -> None:
    pairs = load_recipe("pretrain-r50", ["schedule.pairs=5000"]).schedule
    assert (pairs.epochs, pairs.pairs) == (None, 5000)
    epochs = load_recipe("pretrain-small", ["schedule.epochs=2.5"]).schedule
    assert (epochs.epochs, epochs.pairs) == (2.5, None)


def test_changes_do_not_leak_into_other_recipes() -> None:
    load_recipe("pretrain-r50", ["optim.batch_size=64", "optim.cnn.momentum=0.5"])
    assert Recipe().optim.cnn.lr == load_recipe("pretrain-r50").optim.cnn.lr == 1e-2
    assert Recipe().optim.cnn.momentum == 0.9
    one, two = load_recipe("pretrain-tiny"), load_recipe("pretrain-tiny")
    one.loss.mlm, one.schedule.milestones[0] = 0.5, 1
    assert two.loss.mlm == 1 and two.schedule.milestones == Recipe().schedule.milestones == [25, 35]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.cnn.lrr=1", r"no setting 'optim\.cnn\.lrr' in a recipe; did you mean 'optim\.cnn\.lr'\?"),
        ("lr=1", r"no setting 'lr' in a recipe; did you mean 'optim\.cnn\.lr' or 'optim\.text\.lr'\?"),
        ("optm.batch_size=1", r"did you mean 'optim\.batch_size'\?"),
        ("optim.cnn.lr", r"'optim\.cnn\.lr': a change to the recipe is written key=value"),
        ("optim.cnn.lr=fast", r"optim\.cnn\.lr is 'fast': input should be a valid number"),
        ("optim.batch_size=1.5", r"optim\.batch_size is 1\.5: input should be a valid integer"),
        ("optim.batch_size=0", r"optim\.batch_size is 0: input should be greater than 0"),
        ("backbone.norm=frozn", r"backbone\.norm is 'frozn'; did you mean 'frozen'\?"),
        ("text.activation=gelo", r"text\.activation is 'gelo'; did you mean 'gelu'\?"),
        ("train.precision=16", r"train\.precision is 16; (did you mean 'bfloat16|valid names)"),
        ("schedule.milestones=[1", r"'schedule\.milestones=\[1': the value is not valid YAML"),
        ("mlm.probability=1", r"mlm\.probability is 1: input should be less than 1"),
        ("phases=[{untill: 0.5}]", r"no setting 'phases\.0\.untill' in a recipe; did you mean 'until'\?"),
        ("phases=[{until: 0.5, loss: {mml: 1}}]", r"no setting 'phases\.0\.loss\.mml'.*; did you mean 'loss\.mlm'\?"),
        ("phases=[{until: 0.6}, {until: 0.5}]", r"`until` must grow, not 0\.6, 0\.5"),
        ("loss={mlm: 0, itm: 0}", "at least one loss needs a weight"),
        ("loss.contrastive=1", "need contrastive_size"),
        ("itm.hard_share=0.5", "need contrastive_size"),
        ("schedule.epochs=null", "schedule: give either epochs or pairs"),
        ("optim=5", "optim is 5"),
        ("data.val_split=train", "data.val_split 'train' is trained on"),
        ("validation.images=1", "nothing can be told apart with fewer than 2"),
        ("optim.text.betas=[0.9, 1.0]", r"optim\.text\.betas\.1 is 1\.0: input should be less than 1"),
        ("optim.cnn.lr=.inf", r"optim\.cnn\.lr is inf: input should be a finite number"),
        ("seed=18446744073709551616", "seed is 18446744073709551616: input should be less than"),
        ("seed=-1", "seed is -1: input should be greater than or equal to 0"),
        ("data.train_splits=[]", r"data\.train_splits is \[\]"),
    ],
)
def test_a_wrong_change_is_a_usage_error_with_the_nearest_name(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe("pretrain-r50", [change])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_hard_negatives_and_masks_on_negatives_do_not_go_together() -> None:
    with pytest.raises(UsageError, match="do not go together"):
        load_recipe("pretrain-small", ["mlm.on_negatives=true", "itm.hard_share=0.5"])


# -- files and inheritance -------------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe 'pretrain-smal'; did you mean 'pretrain-small'\?"):
        load_recipe("pretrain-smal")
    with pytest.raises(UsageError, match=r"gone\.yaml: no such recipe file"):
        load_recipe(tmp_path / "gone.yaml")


def test_a_file_extends_a_shipped_recipe_and_others_extend_it(tmp_path: Path) -> None:
    first = write(tmp_path, "first.yaml", extends="pretrain-tiny", optim={"text": {"lr": 0.5}}, seed=3)
    second = write(tmp_path, "second.yaml", extends=str(first), seed=4)
    recipe, tiny = load_recipe(second), load_recipe("pretrain-tiny")
    assert (recipe.optim.text.lr, recipe.seed) == (0.5, 4)
    assert recipe.optim.text.weight_decay == tiny.optim.text.weight_decay
    assert recipe.backbone == tiny.backbone


def test_a_parent_beside_the_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "base.yaml", extends="pretrain-tiny", seed=7)
    child = write(tmp_path, "child.yaml", extends="base.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(child).seed == 7


def test_a_file_that_names_pairs_or_epochs_replaces_its_parents(tmp_path: Path) -> None:
    child = write(tmp_path, "child.yaml", extends="pretrain-r50", schedule={"pairs": 1000})
    assert (load_recipe(child).schedule.pairs, load_recipe(child).schedule.epochs) == (1000, None)
    child = write(tmp_path, "child.yaml", extends="pretrain-small", schedule={"epochs": 3})
    assert (load_recipe(child).schedule.pairs, load_recipe(child).schedule.epochs) == (None, 3)
    both = write(tmp_path, "both.yaml", extends="pretrain-small", schedule={"epochs": 3, "pairs": 10})
    with pytest.raises(UsageError, match="give either epochs or pairs"):
        load_recipe(both)


def test_circles_and_broken_files_are_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    write(tmp_path, "one.yaml", extends=str(two))
    write(tmp_path, "two.yaml", extends=str(one))
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(one)
    write(tmp_path, "self.yaml", extends=str(tmp_path / "self.yaml"))
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(tmp_path / "self.yaml")
    one.write_text("optim: [1")
    with pytest.raises(UsageError, match=r"one\.yaml: not valid YAML"):
        load_recipe(one)
    one.write_text("just words")
    with pytest.raises(UsageError, match="a recipe is a mapping of settings"):
        load_recipe(one)
    one.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UsageError, match=r"one\.yaml: not valid YAML"):
        load_recipe(one)
    one.write_text("optim: {batch_sise: 4}")
    with pytest.raises(UsageError, match=r"one\.yaml: no setting 'optim\.batch_sise'.*'optim\.batch_size'"):
        load_recipe(one)


def test_a_saved_recipe_is_the_recipe(tmp_path: Path) -> None:
    phases = "phases=[{until: 0.3, loss: {mlm: 0, itm: 0}, frozen_stages: 2}, {until: 0.7, lr_scale: 0.1}]"
    recipe = load_recipe("pretrain-small", [phases, "optim.batch_size=64", "schedule.warmup_start=0.3333333333333333"])
    saved = write(tmp_path, "recipe.yaml", **recipe.model_dump(mode="json"))
    assert load_recipe(saved) == recipe
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe) is not recipe
    assert load_recipe(recipe, ["seed=5"]).seed == 5 != recipe.seed


# -- rates and phases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [["optim.batch_size=32", "optim.text.lr=0.001"], ["optim.batch_size=32", "optim.text={lr: 0.001}"],
     ["optim={batch_size: 32, text: {lr: 0.001}}"]],
)  # fmt: skip
def test_a_rate_that_is_given_is_not_scaled(changes: list[str]) -> None:
    recipe, own = load_recipe("pretrain-small", changes), load_recipe("pretrain-small")
    assert recipe.optim.text.lr == 0.001
    assert recipe.optim.cnn.lr == pytest.approx(own.optim.cnn.lr * 32 / own.optim.batch_size)


def test_rates_follow_a_changed_batch_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe("pretrain-small", ["optim.batch_size=32"])
    own = load_recipe("pretrain-small").optim
    factor = 32 / own.batch_size
    assert recipe.optim.cnn.lr == pytest.approx(own.cnn.lr * factor)
    assert recipe.optim.text.lr == pytest.approx(own.text.lr * factor)
    assert own.text.new_lr is not None
    assert recipe.optim.text.new_lr == pytest.approx(own.text.new_lr * factor)
    (record,) = caplog.records
    text = record.getMessage()
    assert f"optim.batch_size is 32 instead of the recipe's {own.batch_size}" in text
    assert f"optim.text.lr is now {own.text.lr * factor:.4g}" in text and "scale_lr=false" in text


def test_rates_that_are_given_or_unscaled_by_wish_stay(caplog: pytest.LogCaptureFixture) -> None:
    given = load_recipe("pretrain-r50", ["optim.batch_size=2048", "optim.cnn.lr=0.3"]).optim
    assert (given.cnn.lr, given.text.lr) == (0.3, pytest.approx(5e-5))
    caplog.clear()
    plain = load_recipe("pretrain-r50", ["optim.batch_size=2048", "optim.scale_lr=false"]).optim
    assert (plain.cnn.lr, plain.text.lr) == (1e-2, 1e-4)
    same = load_recipe("pretrain-r50", ["optim.batch_size=4096"]).optim
    assert same.cnn.lr == 1e-2
    assert not caplog.records


def test_what_a_phase_leaves_unset_is_the_recipes(tmp_path: Path) -> None:
    recipe = load_recipe("pretrain-small", ["loss.mlm=0.7", "phases=[{until: 0.2, loss: {itm: 0}}, {until: 1}]"])
    assert recipe.phases[0].loss == Loss(**dict(recipe.loss) | {"itm": 0})
    assert recipe.phases[1].loss is None
    assert recipe.phases[1].lr_scale == 1


def test_a_recipe_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValidationError):
        Recipe(phases=[Phase(until=0.5), Phase(until=0.5)])
    with pytest.raises(ValidationError):
        Recipe.model_validate({"optim": {"clip_norm": 0}})


def test_a_blind_pretraining_run_is_chosen_by_its_words() -> None:
    """Its matches are chance: by them any of its models may be the best, and the seeing one's gain would be luck."""
    assert load_recipe("pretrain-small").validation.select_on == "itm_accuracy"
    assert load_recipe("pretrain-small", ["blind=true"]).validation.select_on == "mlm_accuracy"
    assert load_recipe(
        "pretrain-small", ["blind=true", "loss={mlm: 0, text_mlm: 0}", "phases=[]"]
    ).validation.select_on == ("itm_accuracy")
    assert load_recipe("pretrain-small", ["blind=true", "validation.select_on=itm_accuracy"]).validation.select_on == (
        "itm_accuracy"
    )
    assert load_recipe("vqa-small", ["blind=true"]).validation.select_on == "vqa_score"
