"""Two optimizers with the right parameters, rates and decay; the schedule step by step."""

from __future__ import annotations

import math

import pytest
import torch

from memory_records import tiny_model
from pixelbert.recipes.schema import CnnOptimizer, Optim, Schedule, TextOptimizer, load_recipe
from pixelbert.training.optimizers import build_optimizers, rate_factor, set_rates


def settings(**changes: object) -> Optim:
    return Optim(
        cnn=CnnOptimizer(lr=0.1, weight_decay=0.25, momentum=0.5),
        text=TextOptimizer(lr=0.01, new_lr=0.02, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6),
        **changes,  # type: ignore[arg-type]
    )


def groups_by_name(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, tuple[int, float, float]]:
    """Parameter name -> (optimizer, rate, decay)."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[int, float, float]] = {}
    for place, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert names[parameter] not in found, "a parameter in two groups"
                found[names[parameter]] = (place, group["lr"], group["weight_decay"])
    return found


def test_every_parameter_is_in_the_group_that_the_paper_gives_it() -> None:
    model = tiny_model()
    optimizers = build_optimizers(model, settings())
    assert [type(o) for o in optimizers] == [torch.optim.SGD, torch.optim.AdamW]
    assert optimizers[0].param_groups[0]["momentum"] == 0.5 and not optimizers[0].param_groups[0]["nesterov"]
    assert optimizers[1].param_groups[0]["betas"] == (0.8, 0.9) and optimizers[1].param_groups[0]["eps"] == 1e-6
    found = groups_by_name(model, optimizers)
    assert found.keys() == dict(model.named_parameters()).keys()  # tied weights count once there too
    for name, (place, rate, decay) in found.items():
        parameter = model.get_parameter(name)
        # biases, norms, s_v and the temperature are not decayed
        assert decay == (0.0 if parameter.ndim < 2 else [0.25, 0.3][place])
        if ".visual." in name:
            assert (place, rate) == (0, 0.1)
        else:
            assert (place, rate) == (1, 0.01 if name.startswith("pixelbert.text.") else 0.02)
    assert found["pixelbert.pixels.projection.weight"] == (1, 0.02, 0.3)
    assert found["pixelbert.text.encoder.layer.0.output.LayerNorm.weight"] == (1, 0.01, 0.0)
    assert "mlm_head.decoder.weight" not in found  # it is the word embedding
    assert found["pixelbert.text.embeddings.word_embeddings.weight"] == (1, 0.01, 0.3)


def test_new_modules_learn_at_the_encoders_rate_unless_told() -> None:
    model = tiny_model()
    optim = settings()
    optim.text.new_lr = None
    assert {rate for place, rate, _ in groups_by_name(model, build_optimizers(model, optim)).values() if place} == {
        0.01
    }


def test_everything_may_be_decayed_and_the_projection_learn_like_the_cnn() -> None:
    model = tiny_model()
    found = groups_by_name(model, build_optimizers(model, settings(no_decay=False, cnn_params="visual")))
    assert {decay for _, _, decay in found.values()} == {0.25, 0.3}
    assert found["pixelbert.pixels.projection.weight"] == (0, 0.1, 0.25)
    assert found["pixelbert.pixels.type_embedding"][0] == 0
    assert found["mlm_head.bias"] == (1, 0.02, 0.3)


def test_the_papers_recipe_gives_the_papers_rates() -> None:
    model = tiny_model(contrastive_size=0)
    found = groups_by_name(model, build_optimizers(model, load_recipe("pretrain-r50").optim))
    assert {(place, rate) for place, rate, _ in found.values()} == {(0, 1e-2), (1, 1e-4)}
    assert {decay for place, _, decay in found.values() if place == 0} == {5e-4, 0.0}
    assert {decay for place, _, decay in found.values() if place == 1} == {1e-2, 0.0}


def test_the_cnn_may_have_adamw() -> None:
    optim = settings()
    optim.cnn.name = "adamw"
    cnn, _ = build_optimizers(tiny_model(), optim)
    assert isinstance(cnn, torch.optim.AdamW)
    assert cnn.param_groups[0]["lr"] == 0.1


def test_two_steps_by_hand() -> None:
    model = tiny_model()
    optimizers = build_optimizers(model, settings())
    kernel = (
        model.get_parameter("pixelbert.visual.body.conv1.0.weight")
        if False
        else next(p for n, p in model.named_parameters() if ".visual.body." in n and p.ndim == 4)
    )
    matrix = model.get_parameter("itm_head.weight")
    w, v = kernel.detach().double(), torch.zeros_like(kernel).double()
    x, m, s = matrix.detach().double(), torch.zeros_like(matrix).double(), torch.zeros_like(matrix).double()
    draw = torch.Generator().manual_seed(0)
    for t, factor in ((1, 0.5), (2, 1.0)):
        set_rates(optimizers, factor)
        for parameter in (kernel, matrix):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        assert kernel.grad is not None and matrix.grad is not None
        g, h = kernel.grad.double(), matrix.grad.double()
        v = 0.5 * v + (g + 0.25 * w)  # SGD with momentum, decay as a gradient; the first step has no history
        w = w - 0.1 * factor * v
        m, s = 0.8 * m + 0.2 * h, 0.9 * s + 0.1 * h * h  # AdamW, decay apart
        x = x - 0.02 * factor * 0.3 * x
        x = x - 0.02 * factor * (m / (1 - 0.8**t)) / ((s / (1 - 0.9**t)).sqrt() + 1e-6)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(kernel.double(), w, atol=1e-6)
    assert torch.allclose(matrix.double(), x, atol=1e-6)


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    model = tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for optimizer in build_optimizers(model, settings()):
        optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


# -- the schedule ----------------------------------------------------------------------------------------------------


def test_warm_up_from_a_third_then_a_tenth_at_each_milestone() -> None:
    schedule = load_recipe("pretrain-r50").schedule
    epoch = 100.0  # steps
    rates = [rate_factor(step, 4000, epoch, schedule) for step in range(4000)]
    assert rates[0] == pytest.approx(1 / 3)
    assert rates[500] == pytest.approx(2 / 3)
    assert rates[1000] == 1 == max(rates)
    assert sorted(set(rates[:1001])) == rates[:1001]
    assert rates[2499] == 1 and rates[2500] == pytest.approx(0.1)
    assert rates[3499] == pytest.approx(0.1) and rates[3500] == pytest.approx(0.01) and rates[-1] == pytest.approx(0.01)
    assert len({round(rate, 9) for rate in rates[1000:]}) == 3


@pytest.mark.parametrize(("records", "batch"), [(1000, 64), (566_747, 4096), (49, 7), (7 * 4096, 4096)])
def test_milestones_count_epochs_of_optimizer_steps(records: int, batch: int) -> None:
    schedule = Schedule(epochs=40, warmup_steps=0)
    steps = 40 * records // batch
    drop = next(step for step in range(steps) if rate_factor(step, steps, records / batch, schedule) < 1)
    assert drop == -(-25 * records // batch)  # the first step that begins with 25 epochs seen


def test_warm_up_and_a_milestone_at_once() -> None:
    schedule = Schedule(warmup_steps=10, milestones=[0.5], factor=0.5, warmup_start=0.0)
    assert rate_factor(6, 100, 10.0, schedule) == pytest.approx(0.6 * 0.5)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_linear_and_cosine_decay(kind: str) -> None:
    schedule = Schedule(pairs=1, warmup_steps=0, decay=kind, decay_from=0.25)  # type: ignore[arg-type]
    rates = [rate_factor(step, 80, 1.0, schedule) for step in range(80)]
    assert set(rates[:21]) == {1.0}
    for step in range(20, 80):
        share = (step - 20) / 60
        expected = 1 - share if kind == "linear" else (1 + math.cos(math.pi * share)) / 2
        assert rates[step] == pytest.approx(expected)
    assert rates[-1] > 0


def test_a_run_of_one_step_has_a_rate() -> None:
    for decay in ("milestones", "linear", "cosine"):
        assert rate_factor(0, 1, 0.5, Schedule(decay=decay, decay_from=0.9, warmup_steps=0)) == 1  # type: ignore[arg-type]


def test_set_rates_multiplies_first_rates() -> None:
    model = tiny_model()
    optimizers = build_optimizers(model, settings())
    set_rates(optimizers, 0.5)
    set_rates(optimizers, 0.1)
    rates = sorted({group["lr"] for optimizer in optimizers for group in optimizer.param_groups})
    assert rates == pytest.approx([0.001, 0.002, 0.01])
