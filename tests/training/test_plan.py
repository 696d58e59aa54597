"""What holds at which step: length, phases, validation."""

from __future__ import annotations

import pytest

from pixelbert.errors import UsageError
from pixelbert.recipes.schema import Recipe, load_recipe
from pixelbert.tasks.pretraining import LossSettings
from pixelbert.training.plan import RunPlan
from tiny_runs import tiny_recipe


def plan(*changes: str, records: int = 100, ranks: int = 1) -> RunPlan:
    return RunPlan(tiny_recipe(*changes), records, ranks)


def test_the_length_comes_from_pairs_or_epochs() -> None:
    assert plan("schedule.pairs=800").steps == 100
    assert plan("schedule.pairs=807").steps == 100
    assert plan("schedule.pairs=3").steps == 1
    assert plan("schedule.epochs=2.5").steps == 31  # 250 pairs
    assert plan("schedule.epochs=2.5").pairs == 248
    assert RunPlan(load_recipe("pretrain-r50"), 5_000_000).steps == 40 * 5_000_000 // 4096


def test_phases_switch_at_their_share_of_the_steps_and_end_with_the_recipe() -> None:
    phases = (
        "phases=[{until: 0.25, loss: {mlm: 0, itm: 0, contrastive: 1}, frozen_stages: 3, num_sampled_pixels: 0},"
        "{until: 0.5, hard_share: 0.5, lr_scale: 0.1}, {until: 0.8, frozen_stages: 1}]"
    )
    run = plan(phases, "schedule.pairs=160", "backbone.frozen_stages=2", "schedule.warmup_steps=0",
               "schedule.decay_from=0.99", "itm.hard_share=0.2")  # fmt: skip
    assert run.steps == 20
    kinds = [(run.at(s).losses, run.at(s).frozen_stages, round(run.at(s).rate, 6)) for s in range(20)]
    first = (LossSettings(0, 0, 1, 0.2, 0), 3, 1.0)
    second = (LossSettings(1, 1, 0, 0.5, 3), 2, 0.1)
    third = (LossSettings(1, 1, 0, 0.2, 3), 1, 1.0)
    rest = (LossSettings(1, 1, 0, 0.2, 3), 2, 1.0)
    assert kinds == [first] * 5 + [second] * 5 + [third] * 6 + [rest] * 4
    assert run.recipe.least_frozen_stages == 1


def test_without_phases_the_recipe_holds_everywhere() -> None:
    run = plan("backbone.frozen_stages=1")
    assert {run.at(step).losses for step in range(run.steps)} == {LossSettings(1, 1, 0, 0, 3)}
    assert run.recipe.least_frozen_stages == 1


def test_all_of_the_cnn_counts_as_least_frozen() -> None:
    assert plan("phases=[{until: 0.5, frozen_stages: -1}]", "backbone.frozen_stages=9").recipe.least_frozen_stages == -1


@pytest.mark.parametrize(("steps", "times"), [(100, 4), (7, 3), (2, 5), (1, 1), (6, 0)])
def test_validation_is_spread_evenly_and_comes_at_the_end(steps: int, times: int) -> None:
    due = plan(f"schedule.pairs={8 * steps}", f"validation.times={times}").validation_steps()
    assert len(due - {0}) <= times
    assert (steps in due) == (times > 0)
    if times and steps % times == 0:
        assert due == {steps * (i + 1) // times for i in range(times)}


def test_a_step_that_processes_cannot_share_is_refused() -> None:
    assert plan(ranks=4).batch_size == 8
    with pytest.raises(UsageError, match="batch_size 8 cannot be shared equally by 3 processes"):
        plan(ranks=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("validation.select_on=itm_acuracy", "no figure 'itm_acuracy' in this recipe; did you mean 'itm_accuracy'"),
        ("validation.select_on=rerank_t2i_r1", "no figure"),
    ],
)
def test_the_figure_to_select_on_must_be_one_that_is_computed(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(change)


def test_figures_that_need_pooled_vectors_or_exact_scores() -> None:
    assert plan("validation.select_on=dual_t2i_r10").steps
    with pytest.raises(UsageError):
        plan("validation.select_on=dual_t2i_r10", "contrastive_size=0")
    with pytest.raises(UsageError):
        plan("validation.select_on=itm_t2i_r1", "validation.exact_images=0")
    assert plan("validation.select_on=nothing", "validation.times=0").steps


def test_a_plan_of_the_schema_defaults() -> None:
    assert RunPlan(Recipe(), 4096).steps == 40
