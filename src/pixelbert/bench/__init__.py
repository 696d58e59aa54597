"""Measurements: a training step at full size (`steps`), image loading (`images`), the drawn quickstart."""

from pixelbert.bench.steps import run_bench

__all__ = ["run_bench"]
