"""The training loop: one visible loop, with two optimizers, exact resume and honest validation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pixelbert.data.batches import Batch, PairOrder, StepSampler, loader
from pixelbert.data.draws import seed_of
from pixelbert.data.records import PreparedData
from pixelbert.errors import TrainingStopped
from pixelbert.model import precision
from pixelbert.model.memory import keep_freed
from pixelbert.recipes.schema import Recipe, load_recipe
from pixelbert.tasks.predicting import on_device
from pixelbert.tasks.table import TASKS
from pixelbert.training.checkpoint import MetricsFile, load_checkpoint, restore, save_checkpoint
from pixelbert.training.frozen_features import FrozenFeatures, frozen_features
from pixelbert.training.history import warnings
from pixelbert.training.optimizers import build_optimizers, set_rates
from pixelbert.training.plan import RunPlan
from pixelbert.training.progress import StepProgress, announcement, note
from pixelbert.training.ranks import lost_ranks, make_accelerator, sum_over_ranks
from pixelbert.training.report import reporting
from pixelbert.training.report.record import record_session
from pixelbert.training.run_folder import open_run, recorded_overrides
from pixelbert.training.run_lock import sole_training
from pixelbert.training.setup import Parts, build_parts, check_training, keep_out, open_splits, prepare_network
from pixelbert.training.signals import stop_requests
from pixelbert.training.validation import Attend, Validator


@dataclass
class TrainResult:
    """What a run came to: its folder, steps and pairs seen, and the figures of its last validation (percent).

    stop_asked: a request to stop came in the last step. This run is done; whoever has more to train should stop.
    """

    run: Path
    steps: int
    pairs: int
    metrics: dict[str, float] = field(default_factory=dict)
    stop_asked: bool = False


def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    from_run: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    blind: bool = False,
    attend: Attend | None = None,
) -> TrainResult:
    """Train a recipe on prepared data into a run folder.

    Args:
        recipe: a name, a YAML file, or a `Recipe`.
        from_run: start from the model and the vocabulary of another run.
        resume: go on where the run in `out` was stopped, with the changes to the recipe that it was started with.
        overrides: `key=value` changes to the recipe.
        blind: the same recipe, steps, texts and masked places with every image replaced by a constant.
        attend: draws attention sheets for the report (`inference.attention_examples.write_attention`); None: none.

    Raises UsageError, DataError, CheckpointError, TrainingStopped (a loss that is not finite, a lost process),
    MachineError; KeyboardInterrupt after Ctrl-C or SIGTERM, when the step is done and saved.
    """
    run, changes = Path(out), [*overrides, *(["blind=true"] if blind else [])]
    if resume and not isinstance(recipe, Recipe):  # one is whole as it is
        changes = [*recorded_overrides(run), *changes]
    settings = load_recipe(recipe, changes)
    if settings.image.square:
        keep_freed()
    prepared = PreparedData(data)
    splits = open_splits(prepared, settings)
    if not resume:
        check_training(prepared, settings, splits[0])
    accelerator = make_accelerator(settings.train.trackers, run)
    main = accelerator.is_main_process
    try:
        with sole_training(run, main):
            kept, calibration = keep_out(splits[0], settings)
            plan = RunPlan(settings, kept.num_records, accelerator.num_processes)
            folder = open_run(run, settings, prepared, resume=resume, from_run=from_run, main=main, overrides=changes)
            checkpoint = load_checkpoint(run, note if main else None) if resume else None
            if main:
                note(announcement(plan, prepared.folder, kept, splits[1], checkpoint[0] if checkpoint else 0))
            parts = build_parts(settings, kept, splits[1], run=run if checkpoint else None, from_run=folder.from_run)
            parts.calibration = calibration
            if main and checkpoint is None:
                for text in warnings(folder.from_run, prepared, settings, calibration):
                    note(text)
            folder.write(parts)
            result = Trainer(settings, plan, run, parts, accelerator, prepared.fingerprint, attend).fit(checkpoint)
            if main:
                note(f"{run}: done, all {plan.steps:,} steps; look at {run / 'report.html'}")
            return result
    finally:
        accelerator.end_training()


class Trainer:
    """A recipe, its parts and the state of training."""

    def __init__(
        self,
        recipe: Recipe,
        plan: RunPlan,
        run: Path,
        parts: Parts,
        accelerator: Accelerator,
        fingerprint: str,
        attend: Attend | None = None,
    ) -> None:
        self.recipe, self.plan, self.run, self.parts, self.accelerator = recipe, plan, run, parts, accelerator
        self.model, self.main = parts.model, accelerator.is_main_process
        self.precision = precision.choose(recipe.train.precision, accelerator.device)
        dtype = precision.use(self.precision, self.model, accelerator.device)
        prepare_network(self.model, recipe, accelerator)
        self.optimizers = build_optimizers(self.model, recipe.optim)
        self.task = TASKS[recipe.task]
        objective = self.task.objective(self.model, dtype, recipe.train.length_chunks)
        self.frozen: FrozenFeatures | None = None
        if recipe.train.keep_frozen_features:
            self.frozen = frozen_features(recipe, run, parts, fingerprint)
            objective.encode = self.frozen.grid
        # the wrapper of several processes looks after what is trainable now: all that any phase trains
        self.model.pixelbert.visual.set_frozen_stages(recipe.least_frozen_stages)
        self.objective = accelerator.prepare(objective)
        self.frozen_stages = recipe.least_frozen_stages
        self.validator = Validator(recipe, run, parts, dtype, fingerprint, attend)

    def fit(self, checkpoint: tuple[int, dict[str, Any]] | None = None) -> TrainResult:
        """Train to the end, from the start or from a checkpoint."""
        first = 0 if checkpoint is None else self._restore(*checkpoint)
        metrics = MetricsFile(self.run / "metrics.jsonl", first, writes=self.main)
        self._announce(first)
        save, sampler = self.recipe.train, self._sampler(first)
        build = self.task.batches(self.recipe, self.parts.train, self.parts.processor, self.model.config, train=True)
        due, saved, figures = self.plan.validation_steps(), time.monotonic(), dict[str, float]()
        stop = False
        with (
            stop_requests() as asked,
            reporting(self.run, note, self.main) as report,
            lost_ranks(self.accelerator),
            closing(loader(build, sampler, self.recipe.data.workers)) as batches,
        ):
            self._stop_between_features(asked)
            for step in range(first, self.plan.steps):
                waiting = time.monotonic()
                micro = [next(batches) for _ in range(sampler.micro_batches)]
                self.progress.waited += time.monotonic() - waiting
                values, done = self._step(step, micro), step + 1
                pairs, last = done * self.plan.batch_size, done == self.plan.steps
                metrics.write(kind="train", step=done, pairs=pairs, **values)
                self.accelerator.log(values, step=done)
                self.progress.step(done, values)
                aside = time.monotonic()
                if last and self.main and done not in due:
                    self.validator.fit()
                if done in due and self.main:
                    figures = self.validator()
                    metrics.write(kind="validation", step=done, pairs=pairs, figures=figures)
                    self.accelerator.log({f"val/{name}": value for name, value in figures.items()}, step=done)
                    report()
                timely = time.monotonic() - saved > save.save_minutes * 60
                stop, timely = self._agree(bool(asked), timely)
                timely = timely or self._features_next(done) or bool(save.save_steps and done % save.save_steps == 0)
                if timely or stop or last:
                    self._save(done, metrics)
                    saved = time.monotonic()
                self.progress.aside += time.monotonic() - aside
                if stop and not last:
                    raise KeyboardInterrupt
        return TrainResult(self.run, self.plan.steps, self.plan.pairs, figures or metrics.last_figures(), stop)

    def _step(self, step: int, micro: list[Batch]) -> dict[str, float]:
        """One optimizer step over all its micro-batches: every loss divided by its count over the whole step."""
        now, ranks = self.plan.at(step), self.accelerator.num_processes
        self.objective.train()
        self._freeze(now.frozen_stages)
        set_rates(self.optimizers, now.rate)
        counts: dict[str, float] = {}
        for batch in micro:
            for name, count in self.task.counts(batch, now.losses).items():
                counts[name] = counts.get(name, 0) + count
        counts = sum_over_ranks(self.accelerator, counts)
        totals = dict.fromkeys(counts, 0.0)
        for i, batch in enumerate(micro):
            torch.manual_seed(seed_of(self.recipe.seed + self.accelerator.process_index, "dropout", step, i))
            with nullcontext() if i == len(micro) - 1 else self.accelerator.no_sync(self.objective):
                sums = self.objective(on_device(batch, self.accelerator.device), now.losses)
                parts = {name: sums[name] / max(1.0, count) for name, count in counts.items()}
                loss = torch.stack([getattr(now.losses, name) * part for name, part in parts.items()]).sum()
                values = {name: part.item() for name, part in parts.items()}
                if not math.isfinite(loss.item()):
                    self._stop(step, f"the loss is not finite ({_shown(values)})", [batch])
                (loss * ranks).backward()  # the wrapper takes the mean over processes, the sum is wanted
            totals = {name: totals[name] + values[name] for name in totals}
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_norm))
        if not math.isfinite(norm):
            self._stop(step, f"the gradient is not finite ({_shown(totals)})", micro)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        totals = sum_over_ranks(self.accelerator, totals)
        weighted = sum(getattr(now.losses, name) * value for name, value in totals.items())
        return {"loss": weighted, **totals, "grad_norm": norm, "rate": now.rate,
                "pairs_per_s": self.progress.rate(step + 1), "data_wait": self.progress.wait_share()}  # fmt: skip

    def _stop(self, step: int, why: str, micro: list[Batch]) -> None:
        ids = [self.parts.train.record_id(record) for batch in micro for record in batch["records"]]
        raise TrainingStopped(f"step {step + 1}: {why}; records {', '.join(ids)}")

    def _freeze(self, stages: int) -> None:
        if stages != self.frozen_stages:
            self.model.pixelbert.visual.set_frozen_stages(stages)
            self.frozen_stages = stages
        if self.frozen is not None and self.frozen.outdated:
            self.frozen.refresh()  # of several processes one computes, the others wait

    def _features_next(self, done: int) -> bool:
        """Whether the next step computes features anew: long work, in which a stop is to lose no step."""
        if self.frozen is None or done == self.plan.steps:
            return False
        return self.plan.at(done).frozen_stages != self.frozen_stages

    def _stop_between_features(self, asked: list[int]) -> None:
        """Features are kept as they are computed, so a request to stop needs not wait for the last of them."""
        if self.frozen is None or self.accelerator.num_processes > 1:  # the others would wait for them
            return
        report = self.frozen.report

        def reporting(what: str, done: int, total: int) -> None:
            report(what, done, total)
            if asked and done < total:
                raise KeyboardInterrupt

        self.frozen.report = reporting

    def _sampler(self, first: int) -> StepSampler:
        optim, accelerator = self.recipe.optim, self.accelerator
        order = PairOrder(self.parts.train.image_of, self.recipe.seed, self.recipe.data.texts_per_image)
        return StepSampler(
            order, first=first, last=self.plan.steps, batch_size=optim.batch_size, micro_batch=optim.micro_batch,
            rank=accelerator.process_index, ranks=accelerator.num_processes,
        )  # fmt: skip

    def _announce(self, first: int) -> None:
        recipe, plan, ranks = self.recipe, self.plan, self.accelerator.num_processes
        self.progress = StepProgress(first, plan.steps, plan.batch_size, recipe.train.log_steps, quiet=not self.main)
        if self.main:
            found = precision.detect(self.accelerator.device)
            record_session(self.run, first, plan.steps, found, self.precision, ranks)
        self.accelerator.init_trackers("tensorboard" if recipe.train.trackers == ["tensorboard"] else "pixelbert")

    def _agree(self, stop: bool, save: bool) -> tuple[bool, bool]:
        """What any process wants, all do: clocks and signals differ between them."""
        wanted = sum_over_ranks(self.accelerator, {"stop": float(stop), "save": float(save)})
        return wanted["stop"] > 0, wanted["save"] > 0

    # -- state --------------------------------------------------------------------------------------------------------

    def _save(self, done: int, metrics: MetricsFile) -> None:
        if not self.main:
            return
        if done == self.plan.steps and self.validator.best is None:  # no validation: the last model is all there is
            self.validator.keep(0.0)
        metrics.sync()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, "best": self.validator.best}
        save_checkpoint(self.run, done, state, self.recipe.train.keep_checkpoints)

    def _restore(self, step: int, state: dict[str, Any]) -> int:
        self.validator.best = restore(self.run, step, state, self.model, self.optimizers)
        if self.main and self.validator.best is not None and not (self.run / "model.safetensors").is_file():
            done = step == self.plan.steps
            whose = f"the model of step {step:,}" if done else "the next validation's"
            note(f"{self.run}: its best model is gone; {whose} takes its place")
            self.validator.best = None
            if done:
                self.validator.keep(0.0)
        return step


def _shown(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
