"""`PixelBertProcessor`: pictures and words as people have them, to the tensors that the model takes.

Batches stay uint8: normalisation happens on the device, inside the model (`PixelBertConfig.image_mean`, `image_std`).
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, cast

import numpy as np
from transformers import AutoImageProcessor, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from pixelbert.errors import UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.image_processing import (
    DEFAULT_LIMITS,
    BadImage,
    ImageLimits,
    ImageSource,
    ResizeRule,
    collate_images,
    load_image,
)
from pixelbert.model.tokenization import MAX_LENGTH, encodable, vocabulary_of

TensorKind = Literal["pt", "np"]


class ImageSettings(TypedDict, total=False):
    """The settings of `PixelBertImageProcessor`, which `from_pretrained` may override by name."""

    shorter: int | None
    longer: int | None
    square: int | None
    multiple: int
    enlarge: bool
    size_divisor: int
    max_bytes: int
    max_pixels: int


class PixelBertImageProcessor(BaseImageProcessor):
    """Decodes, resizes and pads pictures to one uint8 batch.

    Args:
        shorter, longer, square, multiple, enlarge: the size rule, see `ResizeRule`. The defaults are the paper's
            (shorter edge 800, longer at most 1333); `multiple_for_backbone` says what `multiple` a CNN needs.
        size_divisor: pictures of different sizes are padded right and below to a multiple of this over the batch.
        max_bytes, max_pixels: refused before decoding, see `ImageLimits`.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]
    valid_kwargs = ImageSettings

    def __init__(
        self,
        shorter: int | None = 800,
        longer: int | None = 1333,
        square: int | None = None,
        multiple: int = 1,
        enlarge: bool = True,
        size_divisor: int = 64,
        max_bytes: int = DEFAULT_LIMITS.max_bytes,
        max_pixels: int = DEFAULT_LIMITS.max_pixels,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("image_processor_type", None)
        super().__init__(**kwargs)
        self.shorter, self.longer, self.square = shorter, longer, square
        self.multiple, self.enlarge = multiple, enlarge
        self.size_divisor = size_divisor
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        if size_divisor < 1:
            raise UsageError(f"size_divisor must be at least 1, not {size_divisor}")
        _ = self.rule, self.limits  # raise now what they would raise later

    def to_dict(self) -> dict[str, Any]:
        """All settings by name; an edge without a bound (None) is one, which transformers would leave out."""
        edges = {"shorter": self.shorter, "longer": self.longer, "square": self.square}
        return {**super().to_dict(), **edges}

    @property
    def rule(self) -> ResizeRule:
        """The size rule as the data side takes it."""
        return ResizeRule(self.shorter, self.longer, self.square, self.multiple, self.enlarge)

    @property
    def limits(self) -> ImageLimits:
        """What a picture may cost."""
        return ImageLimits(self.max_bytes, self.max_pixels)

    def preprocess(
        self, images: ImageSource | Sequence[ImageSource], return_tensors: TensorKind | None = "pt", **_: Any
    ) -> BatchFeature:
        """One or several pictures (paths, bytes, PIL images, arrays, tensors; see `decode_image`) as a batch.

        Returns pixel_values uint8 [I, 3, H, W] and image_sizes int64 [I, 2], the valid (height, width) of each.
        Raises BadImage, which names the picture's path or, without one, its place in the list.
        """
        rule, limits = self.rule, self.limits
        pixels = [_load(index, source, rule, limits) for index, source in enumerate(as_image_list(images))]
        pixel_values, image_sizes = collate_images(pixels, self.size_divisor)
        return _as_kind({"pixel_values": pixel_values, "image_sizes": image_sizes}, return_tensors)


def _load(index: int, source: ImageSource, rule: ResizeRule, limits: ImageLimits) -> np.ndarray:
    try:
        return load_image(source, rule, limits)
    except BadImage as error:
        if isinstance(source, (str, os.PathLike)):  # the message begins with the path
            raise
        raise BadImage(f"image {index + 1}: {error}") from error


def as_image_list(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """One picture, a list of pictures, or an array or tensor of four axes, as a list. Raises UsageError when empty."""
    if getattr(images, "ndim", None) == 4 or isinstance(images, (list, tuple)):
        listed = list(cast("Sequence[ImageSource]", images))
        if not listed:
            raise UsageError("the list of images is empty")
        return listed
    return [cast("ImageSource", images)]


def _as_kind(tensors: dict[str, Any], kind: TensorKind | None) -> BatchFeature:
    if kind not in (None, "pt", "np"):
        raise UsageError(f"return_tensors is '{kind}', expected 'pt' or 'np'")
    if kind == "np":
        tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    return BatchFeature(tensors)


class PixelBertProcessor(ProcessorMixin):
    """Image processor and WordPiece tokenizer in one: `processor(images=..., text=...)` gives the model's inputs.

    Args:
        image_processor: a `PixelBertImageProcessor`.
        tokenizer: a BERT tokenizer (`pixelbert.model.tokenization.load_tokenizer`).
        max_length: wordpieces of a text, [CLS] and [SEP] included; what is longer is cut.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, max_length: int = MAX_LENGTH) -> None:
        super().__init__(image_processor, tokenizer)
        if max_length < 3:
            raise UsageError(f"max_length must leave room for [CLS], a wordpiece and [SEP], not {max_length}")
        self.max_length = max_length

    @property
    def model_input_names(self) -> list[str]:
        """What the model's forward takes from here."""
        return ["input_ids", "attention_mask", *PixelBertImageProcessor.model_input_names]

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: TensorKind | None = "pt",
    ) -> BatchFeature:
        """Pictures, texts or both; one or a list of each.

        Returns input_ids and attention_mask int64 [T, L], padded to the longest text (`padding="max_length"`: to
        max_length), and pixel_values uint8 [I, 3, H, W] with image_sizes int64 [I, 2]. T and I need not be equal.
        Raises BadImage for a picture that cannot be read, UsageError for arguments that make no sense.
        """
        if images is None and text is None:
            raise UsageError("the processor needs images, text or both")
        batch: dict[str, Any] = {}
        if text is not None:
            encoded = self.tokenizer(
                _as_text_list(text),
                padding=padding,
                truncation=truncation,
                max_length=max_length or self.max_length,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            batch.update(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        if images is not None:
            batch.update(self.image_processor.preprocess(images))
        return _as_kind(batch, return_tensors)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """transformers' files and the plain `vocab.txt`, each written whole or not at all."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if push_to_hub:
            kwargs.setdefault("repo_id", folder.name)
        # The last call's truncation and padding are state of the tokenizer, but no part of what it is.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        with tempfile.TemporaryDirectory(prefix=".processor-", dir=folder) as temporary:
            super().save_pretrained(temporary, push_to_hub=push_to_hub, **kwargs)
            vocabulary = "".join(f"{token}\n" for token in vocabulary_of(self.tokenizer))
            (Path(temporary) / "vocab.txt").write_bytes(vocabulary.encode("utf-8"))
            written = sorted(Path(temporary).iterdir())
            for path in written:
                _sync(path)
                os.replace(path, folder / path.name)
        return [str(folder / path.name) for path in written]


def _as_text_list(text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise UsageError("the list of texts is empty")
    for index, item in enumerate(texts):
        if not isinstance(item, str):
            raise UsageError(f"text {index + 1} is a {type(item).__name__}, not a string")
    return [encodable(item) for item in texts]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _register() -> None:
    """`AutoImageProcessor`, which `PixelBertProcessor.from_pretrained` goes through, finds our class."""
    if "image_processor_classes" in inspect.signature(AutoImageProcessor.register).parameters:
        # It asks for a class by the library that resizes; ours is the same for both.
        classes = {"pil": PixelBertImageProcessor, "torchvision": PixelBertImageProcessor}
        AutoImageProcessor.register(PixelBertConfig, image_processor_classes=classes, exist_ok=True)
    else:  # transformers 5.0
        AutoImageProcessor.register(PixelBertConfig, PixelBertImageProcessor, exist_ok=True)


_register()
