"""Two optimizers, as the paper has them: SGD (or AdamW) for the CNN, AdamW for the rest; and their schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from pixelbert.model.modeling import PixelBertPreTrainedModel
from pixelbert.recipes.schema import Optim, Schedule

# Modules that pretrained weights never fill: they may learn at `optim.text.new_lr`.
_NEW = ("pixels.", "mlm_head.", "skip.", "itm_head.", "contrastive.", "head.")


def build_optimizers(model: PixelBertPreTrainedModel, settings: Optim) -> list[Optimizer]:
    """[CNN optimizer, Transformer optimizer].

    Frozen parameters are in them too, because a phase may train them later: without a gradient they stay as they are.
    Every group remembers its first rate in `initial_lr`. Tied weights appear once.
    """
    cnn: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    parts = (".visual.body.", ".pixels.") if settings.cnn_params == "visual" else (".visual.body.",)
    for name, parameter in model.named_parameters():
        (cnn if any(part in f".{name}" for part in parts) else rest).append((name, parameter))
    cnn_groups = _groups(cnn, settings.cnn.lr, settings.cnn.weight_decay, settings.no_decay)
    new = settings.text.new_lr if settings.text.new_lr is not None else settings.text.lr
    old_names = [(n, p) for n, p in rest if not n.removeprefix("pixelbert.").startswith(_NEW)]
    new_names = [(n, p) for n, p in rest if n.removeprefix("pixelbert.").startswith(_NEW)]
    text_groups = _groups(old_names, settings.text.lr, settings.text.weight_decay, settings.no_decay)
    text_groups += _groups(new_names, new, settings.text.weight_decay, settings.no_decay)
    text = torch.optim.AdamW(text_groups, betas=settings.text.betas, eps=settings.text.eps, fused=True)
    if settings.cnn.name == "sgd":
        # not fused: that fails where a phase trains parameters that have no momentum yet beside some that have
        return [torch.optim.SGD(cnn_groups, momentum=settings.cnn.momentum), text]
    return [torch.optim.AdamW(cnn_groups, betas=settings.text.betas, eps=settings.text.eps, fused=True), text]


def _groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float, no_decay: bool
) -> list[dict[str, object]]:
    """With decay and without: biases and norms (one-dimensional parameters) are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in named:
        (plain if no_decay and parameter.ndim <= 1 else decayed).append(parameter)
    return [
        {"params": decayed, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay},
        {"params": plain, "lr": lr, "initial_lr": lr, "weight_decay": 0.0},
    ]


def rate_factor(step: int, steps: int, steps_per_epoch: float, settings: Schedule) -> float:
    """What the rates are multiplied by at an optimizer step: warm-up, then milestones, linear or cosine decay."""
    warm = 1.0
    if step < settings.warmup_steps:
        warm = settings.warmup_start + (1 - settings.warmup_start) * step / settings.warmup_steps
    if settings.decay == "milestones":
        return warm * settings.factor ** sum(step + 1e-6 >= m * steps_per_epoch for m in settings.milestones)
    start = settings.decay_from * steps
    share = min(1.0, max(0.0, (step - start) / max(1.0, steps - start)))
    return warm * ((1 - share) if settings.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share)))


def set_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Every group's rate = its first rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
