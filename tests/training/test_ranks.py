"""Two processes train what one trains; they stop, and go on, together."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelbert.errors import TrainingStopped
from pixelbert.training.checkpoint import checkpoints
from pixelbert.training.loop import train
from pixelbert.training.ranks import lost_ranks, sum_over_ranks
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe, widest_gap
from training_jobs import on_ranks, train_quietly, train_until_one_is_asked_to_stop, train_until_one_is_lost

PHASES = "phases=[{until: 0.5, frozen_stages: 9}, {until: 1, frozen_stages: -1}]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("ranks"))


def test_two_processes_train_what_one_trains_and_resume_to_the_same_bits(tmp_path: Path, data: Path) -> None:
    """Phases that unfreeze the CNN, accumulation, and few masked words on one side; then one is asked to stop."""
    # a large eps: Adam would blow rounding errors of tiny gradients up to whole steps
    plain = tiny_recipe(PHASES, "optim.micro_batch=2", "optim.text.eps=1e-2")
    noisy = tiny_recipe(PHASES, "optim.micro_batch=2", "text.dropout=0.1", "loss.contrastive=1", "data.workers=1")
    train(plain, data, tmp_path / "one")
    codes = on_ranks(
        2,
        (train_quietly, (plain, data, tmp_path / "two"), {}),
        (train_quietly, (noisy, data, tmp_path / "noisy"), {}),
        (train_until_one_is_asked_to_stop, (noisy, data, tmp_path / "cut", 4), {}),
        (train_quietly, (noisy, data, tmp_path / "cut"), {"resume": True}),
    )
    assert codes == [0, 0]
    assert [row["step"] for row in losses(tmp_path / "two")] == [1, 2, 3, 4, 5, 6, 6]
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        if one["kind"] == "train":
            numbers = ("step", "pairs", "loss", "mlm", "itm", "grad_norm", "rate")
            assert [two[name] for name in numbers] == pytest.approx([one[name] for name in numbers], rel=1e-4)
    assert widest_gap(tmp_path / "one", tmp_path / "two") < 1e-5
    assert losses(tmp_path / "cut") == losses(tmp_path / "noisy")
    assert same_weights(tmp_path / "cut", tmp_path / "noisy")
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000004", "step-00000006"]


def test_a_lost_process_stops_the_others_with_exit_code_4(tmp_path: Path, data: Path) -> None:
    settings = tiny_recipe("train.save_steps=2", "schedule.pairs=80", "validation.times=0")
    codes = on_ranks(2, (train_until_one_is_lost, (settings, data, tmp_path / "run", 5), {}))
    assert codes == [4, -signal.SIGKILL]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize(
    "words",
    ["[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234", "NCCL communicator was aborted",
     "Socket Timeout", "Connection reset by peer"],
)  # fmt: skip
def test_words_of_a_lost_process(words: str) -> None:
    several: Any = SimpleNamespace(num_processes=2, process_index=0)
    said = "another process of this run was lost; go on with --resume"
    with pytest.raises(TrainingStopped, match=said), lost_ranks(several):
        raise RuntimeError(words)
    alone: Any = SimpleNamespace(num_processes=1, process_index=0)
    with pytest.raises(RuntimeError), lost_ranks(alone):
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), lost_ranks(several):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_process_alone_sums_nothing() -> None:
    alone: Any = SimpleNamespace(num_processes=1)
    assert sum_over_ranks(alone, {"mlm": 3.0}) == {"mlm": 3.0}
