"""The training loop: one visible loop for every task, with two optimizers, exact resume and honest validation."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from pixelbert.data.batches import Batch, PairOrder, StepSampler, loader
from pixelbert.data.draws import seed_of
from pixelbert.data.records import PreparedData
from pixelbert.errors import TrainingStopped
from pixelbert.recipes.schema import Phase, Recipe, load_recipe
from pixelbert.tasks.pretraining import LossSettings, PretrainingObjective, loss_counts
from pixelbert.tasks.pretraining_scores import HeldOut, validate
from pixelbert.training import precision
from pixelbert.training.checkpoint import MetricsFile, load_checkpoint, load_state, save_checkpoint
from pixelbert.training.frozen_features import FrozenFeatures, frozen_features
from pixelbert.training.optimizers import build_optimizers, rate_factor, set_rates
from pixelbert.training.progress import StepProgress
from pixelbert.training.report import reporting
from pixelbert.training.run_folder import open_run, save_best, save_last, write_validation
from pixelbert.training.report.record import record_session
from pixelbert.training.setup import (
    Parts,
    build_model,
    build_processor,
    freeze_embeddings,
    open_splits,
    pretraining_batches,
)


@dataclass
class TrainResult:
    """What a run came to: its folder, steps and pairs seen, and the figures of its last validation (percent)."""

    run: Path
    steps: int
    pairs: int
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    from_run: str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    blind: bool = False,
) -> TrainResult:
    """Train a recipe on prepared data into a run folder.

    Args:
        recipe: a name, a YAML file, or a `Recipe`.
        from_run: start from the model of another run.
        resume: go on where the run in `out` was stopped.
        overrides: `key=value` changes to the recipe.
        blind: the same recipe, steps, texts and masked places with every image replaced by a constant.

    Raises UsageError, DataError, CheckpointError, TrainingStopped (a loss that is not finite), MachineError.
    """
    settings = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    settings.blind = settings.blind or blind
    prepared, run = PreparedData(data), Path(out)
    train_split, val_split = open_splits(prepared, settings)
    info = open_run(run, settings, prepared, resume=resume, from_run=from_run)
    processor = info.processor or build_processor(settings, train_split)
    if info.model is not None:
        model, reports = info.model, {"from": str(from_run)}
    else:
        model, reports = build_model(settings, processor)
    info.write(processor, model.config, reports)
    parts = Parts(processor, model, train_split, val_split, reports)
    return Trainer(settings, run, parts, prepared.fingerprint).fit(load_checkpoint(run) if resume else None)


class Trainer:
    """A recipe, its parts and the state of training."""

    def __init__(self, recipe: Recipe, run: Path, parts: Parts, fingerprint: str = "") -> None:
        self.recipe, self.run, self.parts = recipe, run, parts
        self.accelerator = Accelerator(
            log_with=list(recipe.train.trackers) or None,
            project_dir=str(run),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.model = parts.model
        self.precision = chosen = precision.choose(recipe.train.precision, self.accelerator.device)
        self.encoder_dtype = torch.bfloat16 if chosen.encoder == "bfloat16" else None
        self.model.pixelbert.visual.compute_dtype = torch.bfloat16 if chosen.backbone == "bfloat16" else None
        self.model.pixelbert.visual.body.to(memory_format=torch.channels_last)
        if recipe.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        if recipe.text.freeze_embeddings:
            freeze_embeddings(self.model)
        self.optimizers = build_optimizers(self.model, recipe.optim)
        objective = PretrainingObjective(self.model, self.encoder_dtype, recipe.train.length_chunks)
        self.frozen: FrozenFeatures | None = None
        if recipe.train.keep_frozen_features:
            self.frozen = frozen_features(recipe, run, parts, fingerprint)
            objective.encode = self.frozen.grid
        self.objective = self.accelerator.prepare(objective)
        optim, schedule, records = recipe.optim, recipe.schedule, parts.train.num_records
        self.pairs = schedule.pairs if schedule.pairs is not None else round((schedule.epochs or 1) * records)
        self.steps = max(1, self.pairs // optim.batch_size)
        self.steps_per_epoch = records / optim.batch_size
        self.best: float | None = None

    # -- the loop ----------------------------------------------------------------------------------------------------

    def fit(self, checkpoint: tuple[int, dict[str, Any]] | None = None) -> TrainResult:
        """Train to the end, from the start or from a checkpoint."""
        first = 0
        if checkpoint is not None:
            first = self._restore(*checkpoint)
        metrics, main = MetricsFile(self.run / "metrics.jsonl", first), self.accelerator.is_main_process
        if main:
            found, ranks = precision.detect(self.accelerator.device), self.accelerator.num_processes
            record_session(self.run, first, self.steps, found, self.precision, ranks)
        self.accelerator.init_trackers("tensorboard")
        self.progress = StepProgress(first, self.steps, self.recipe.optim.batch_size, self.recipe.train.log_steps)
        sampler, batches = self._batches(first)
        due, saved, figures = self._validation_steps(), time.monotonic(), dict[str, float]()
        with _stop_requests() as stop, reporting(self.run, self.progress.note, main) as report:
            for step in range(first, self.steps):
                waiting = time.monotonic()
                micro = [next(batches) for _ in range(sampler.micro_batches)]
                self.progress.waited += time.monotonic() - waiting
                values = self._step(step, micro)
                done = step + 1
                metrics.write(kind="train", step=done, pairs=done * self.recipe.optim.batch_size, **values)
                self.accelerator.log(values, step=done)
                self.progress.step(done, {k: v for k, v in values.items() if k in ("loss", "mlm", "itm", "contrastive")})
                aside = time.monotonic()
                if done in due:
                    figures = self._validate(done, metrics)
                    report()
                save = self.recipe.train
                timely = time.monotonic() - saved > save.save_minutes * 60
                if timely or stop or done == self.steps or (save.save_steps and done % save.save_steps == 0):
                    self._save(done)
                    saved = time.monotonic()
                self.progress.aside += time.monotonic() - aside
                if stop:
                    raise KeyboardInterrupt
        if not figures:
            figures = next((r["figures"] for r in reversed(metrics.rows()) if r["kind"] == "validation"), {})
        self.accelerator.end_training()
        return TrainResult(self.run, self.steps, self.steps * self.recipe.optim.batch_size, figures)

    def _step(self, step: int, micro: list[Batch]) -> dict[str, float]:
        """One optimizer step over all its micro-batches: every loss divided by its count over the whole step."""
        self.objective.train()
        phase = self._phase(step)
        settings = self._loss_settings(phase)
        if phase.frozen_stages is not None and phase.frozen_stages != self.model.pixelbert.visual.config.frozen_stages:
            self.model.pixelbert.visual.config.frozen_stages = phase.frozen_stages
            self.model.pixelbert.visual.set_frozen_stages(phase.frozen_stages)
        if self.frozen is not None:
            self.frozen.refresh()
        counts = self._total_counts(micro, settings)
        factor = phase.lr_scale * rate_factor(step, self.steps, self.steps_per_epoch, self.recipe.schedule)
        set_rates(self.optimizers, factor)
        totals: dict[str, float] = dict.fromkeys(counts, 0.0)
        for i, batch in enumerate(micro):
            torch.manual_seed(seed_of(self.recipe.seed + self.accelerator.process_index, "dropout", step, i))
            batch = _to_device(batch, self.accelerator.device)
            with nullcontext() if i == len(micro) - 1 else self.accelerator.no_sync(self.objective):
                sums = self.objective(batch, settings)
                parts = {name: sums[name] / counts[name] for name in counts}
                loss = sum(getattr(settings, name) * part for name, part in parts.items())
                assert isinstance(loss, torch.Tensor)
                if not math.isfinite(loss.item()):
                    self._stop(step, batch, parts)
                self.accelerator.backward(loss * self.accelerator.num_processes)  # DDP takes the mean, we want the sum
            for name, part in parts.items():
                totals[name] += part.item()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optim.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        totals = self._sum_over_ranks(totals)
        loss_value = sum(getattr(settings, name) * value for name, value in totals.items())
        return {"loss": loss_value, **totals, "grad_norm": float(norm), "rate": factor,
                "pairs_per_s": self.progress.rate(step + 1), "data_wait": self.progress.wait_share()}  # fmt: skip

    def _stop(self, step: int, batch: Batch, parts: dict[str, torch.Tensor]) -> None:
        ids = [self.parts.train.record_id(r) for r in batch["records"]]
        values = ", ".join(f"{name} {part.item()}" for name, part in parts.items())
        raise TrainingStopped(f"step {step + 1}: the loss is not finite ({values}); records {', '.join(ids)}")

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _batches(self, first: int) -> tuple[StepSampler, Iterator[Batch]]:
        optim, data, ranks = self.recipe.optim, self.recipe.data, self.accelerator.num_processes
        order = PairOrder(self.parts.train.image_of, self.recipe.seed, data.texts_per_image)
        sampler = StepSampler(
            order, first=first, last=self.steps, batch_size=optim.batch_size, micro_batch=optim.micro_batch,
            rank=self.accelerator.process_index, ranks=ranks,
        )  # fmt: skip
        build = pretraining_batches(self.recipe, self.parts.train, self.parts.processor, self.model.config, train=True)
        return sampler, loader(build, sampler, data.workers)

    def _phase(self, step: int) -> Phase:
        share = step / self.steps
        return next((p for p in self.recipe.phases if share < p.until), Phase())

    def _loss_settings(self, phase: Phase) -> LossSettings:
        loss = phase.loss or self.recipe.loss
        hard = phase.hard_share if phase.hard_share is not None else self.recipe.itm.hard_share
        pixels = phase.num_sampled_pixels
        if pixels is None:
            pixels = self.recipe.visual.num_sampled_pixels
        return LossSettings(loss.mlm, loss.itm, loss.contrastive, hard, pixels)

    def _total_counts(self, micro: list[Batch], settings: LossSettings) -> dict[str, float]:
        counts: dict[str, float] = {}
        for batch in micro:
            for name, count in loss_counts(batch, settings).items():
                counts[name] = counts.get(name, 0) + count
        return self._sum_over_ranks(counts)

    def _sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return values
        names = sorted(values)
        total = self.accelerator.reduce(
            torch.tensor([values[n] for n in names], dtype=torch.float64, device=self.accelerator.device), "sum"
        )
        return dict(zip(names, total.tolist(), strict=True))

    def _validation_steps(self) -> set[int]:
        times = self.recipe.validation.times
        return {round(self.steps * (i + 1) / times) for i in range(times)} if times else set()

    def _validate(self, done: int, metrics: MetricsFile) -> dict[str, float]:
        """Figures on held-out images; keeps the model if it is the best so far by the recipe's measure."""
        if not self.accelerator.is_main_process:
            return {}
        settings = self.recipe.validation
        self.model.eval()
        batches = pretraining_batches(self.recipe, self.parts.val, self.parts.processor, self.model.config, train=False)
        count = min(settings.images or self.parts.val.num_images, self.parts.val.num_images)
        held_out = HeldOut(
            self.model, batches, list(range(count)), settings.captions_per_image, settings.seed, settings.batch_size,
            self.encoder_dtype,
        )  # fmt: skip
        figures, words = validate(held_out, settings.exact_images)
        metrics.write(kind="validation", step=done, pairs=done * self.recipe.optim.batch_size, figures=figures)
        self.accelerator.log({f"val/{name}": value for name, value in figures.items()}, step=done)
        shown = ("itm_accuracy", "mlm_accuracy", "mlm_gain_shuffled", "dual_t2i_r10", "itm_t2i_r10")
        self.progress.note("val  " + "  ".join(f"{k} {figures[k]:.1f}" for k in shown if k in figures))
        write_validation(self.run, held_out, figures, words)
        value = figures[settings.select_on]
        if self.best is None or value > self.best:
            self.best = value
            save_best(self.run, self.model)
        save_last(self.run, self.model, self.parts.processor)
        return figures

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self, done: int) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {
                "model": self.model.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "best": self.best,
            }
            save_checkpoint(self.run, done, state, self.recipe.train.keep_checkpoints)

    def _restore(self, step: int, state: dict[str, Any]) -> int:
        load_state(self.model, state["model"], self.run / "checkpoints")
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.best = state["best"]
        return step


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM, so that a step is never cut in two; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's business
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
