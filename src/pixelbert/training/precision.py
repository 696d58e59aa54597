"""The precision of a run: `pixelbert.model.precision`, which inference shares, by its name here."""

from pixelbert.model.precision import NAMES, Capability, Precision, choose, detect, processor_name

__all__ = ["NAMES", "Capability", "Precision", "choose", "detect", "processor_name"]
