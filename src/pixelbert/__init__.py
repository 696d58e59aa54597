"""Pixel-BERT (Huang et al., 2020): image pixels and words in one network, trained end to end.

`import pixelbert` and `import pixelbert.metrics` load neither torch nor transformers: every public name below is
imported from its module when it is first asked for. After `import pixelbert`, the Auto classes of transformers open
a Pixel-BERT folder (`pixelbert.auto` says how that works without importing transformers here).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pixelbert import auto as _auto

if TYPE_CHECKING:
    from pixelbert import metrics as metrics
    from pixelbert.data.prepare import prepare as prepare
    from pixelbert.inference.predictor import Predictor as Predictor
    from pixelbert.model.config import PixelBertConfig as PixelBertConfig
    from pixelbert.model.heads import PixelBertForImageAndTextRetrieval as PixelBertForImageAndTextRetrieval
    from pixelbert.model.heads import PixelBertForImagesAndTextClassification as PixelBertForImagesAndTextClassification
    from pixelbert.model.heads import PixelBertForQuestionAnswering as PixelBertForQuestionAnswering
    from pixelbert.model.modeling import PixelBertForPreTraining as PixelBertForPreTraining
    from pixelbert.model.modeling import PixelBertModel as PixelBertModel
    from pixelbert.model.processor import PixelBertProcessor as PixelBertProcessor
    from pixelbert.training.evaluate import evaluate as evaluate
    from pixelbert.training.loop import train as train
    from pixelbert.training.predict import predict as predict

__version__ = "0.1.0"

# Public name -> the module it lives in. A module's own name (metrics) stands for the module itself.
_HOME = {
    "PixelBertConfig": "pixelbert.model.config",
    "PixelBertForImageAndTextRetrieval": "pixelbert.model.heads",
    "PixelBertForImagesAndTextClassification": "pixelbert.model.heads",
    "PixelBertForPreTraining": "pixelbert.model.modeling",
    "PixelBertForQuestionAnswering": "pixelbert.model.heads",
    "PixelBertModel": "pixelbert.model.modeling",
    "PixelBertProcessor": "pixelbert.model.processor",
    "Predictor": "pixelbert.inference.predictor",
    "evaluate": "pixelbert.training.evaluate",
    "metrics": "pixelbert.metrics",
    "predict": "pixelbert.training.predict",
    "prepare": "pixelbert.data.prepare",
    "train": "pixelbert.training.loop",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    """A public name, imported when first asked for (PEP 562). Raises AttributeError for any other name."""
    if name not in _HOME:
        raise AttributeError(f"module 'pixelbert' has no attribute {name!r}")
    module = importlib.import_module(_HOME[name])
    value = module if module.__name__ == f"pixelbert.{name}" else getattr(module, name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


_auto.install()
