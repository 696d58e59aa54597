"""Encoded bytes to uint8 pixels: decode, limit, resize, pad. Pure functions that the data side and the processor share.

The reference for every pixel is Pillow: `Image.open`, EXIF orientation applied, converted to RGB, and
`resize(BILINEAR)`, which filters when it makes an image smaller. Two parts are replaced by faster ones: JPEG decoding
by simplejpeg (the same libjpeg with the same settings, so the same pixels) and resizing by PyTorch's uint8 kernel
(the same filter; at most one level apart where the two round differently). Measured in docs/images.md.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from pixelbert.errors import DataError, UsageError

try:
    import simplejpeg
except ImportError:  # then Pillow decodes every image
    simplejpeg = None

if TYPE_CHECKING:
    import torch

    Encoded: TypeAlias = bytes | bytearray | memoryview
    ImageSource: TypeAlias = Encoded | str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
else:
    ImageSource: TypeAlias = Any

# Formats that hold photos. Pillow knows more, some of which start other programs (EPS) or have no signature (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
ORIENTATION_TAG = 0x112
WHITE = (255, 255, 255, 255)


class BadImage(DataError, ValueError):
    """An image that cannot be used; the message is one clause that says why ("is empty")."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost, checked on the file's size and header before anything is decoded.

    max_bytes: size of the encoded file. max_pixels: height x width, before and after resizing; the default is the
    number at which Pillow itself begins to warn, and Pillow refuses twice that whatever is set here.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 89_478_485

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise UsageError(f"image limits must be positive, not {self.max_bytes} bytes and {self.max_pixels} pixels")

    def check_bytes(self, size: int) -> None:
        """Raises BadImage when a file of `size` bytes is too large."""
        if size > self.max_bytes:
            raise BadImage(f"has {size:,} bytes, more than the {self.max_bytes:,} allowed")

    def check_pixels(self, height: int, width: int, verb: str = "has") -> None:
        """Raises BadImage when there are too many pixels, or none."""
        if height < 1 or width < 1:
            raise BadImage(f"has no pixels ({width} x {height})")
        if height * width > self.max_pixels:
            raise BadImage(f"{verb} {width:,} x {height:,} pixels, more than the {self.max_pixels:,} allowed")


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class ResizeRule:
    """The size an image gets. The paper: shorter edge 800, longer at most 1333 (X152: 600 and 1000), aspect kept.

    shorter: what the shorter edge becomes; None: only `longer` rules.
    longer:  what the longer edge may have at most; None: no limit. Without `shorter` the longer edge becomes this.
             Neither: the size stays.
    square:  N squeezes every image to N x N, whatever its aspect; `shorter` and `longer` are then not used.
    multiple: both edges become a multiple of this, for backbones that need it (`multiple_for_backbone`).
    enlarge: False leaves an image as it is rather than making it larger.

    Rounding: an edge is floor(edge * scale + 0.5), at least 1. With `multiple` m it is the nearest multiple of m to
    edge * scale (a half goes up), at least m, and the highest multiple under `longer` where the nearest would exceed
    it; so the aspect may change by up to m / 2 an edge. `longer` is exceeded only where it is itself below m.
    """

    shorter: int | None = 800
    longer: int | None = 1333
    square: int | None = None
    multiple: int = 1
    enlarge: bool = True

    def __post_init__(self) -> None:
        for name in ("shorter", "longer", "square", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"the image rule's '{name}' must be at least 1, not {value}")
        if self.shorter and self.longer and self.shorter > self.longer:
            raise UsageError(f"the shorter edge ({self.shorter}) cannot be more than the longer ({self.longer})")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing an image of this height and width (as it is seen, orientation applied)."""
        if self.square is not None:
            edges = (float(self.square), float(self.square))
            if not self.enlarge:
                edges = (min(edges[0], height), min(edges[1], width))
            return self._round(edges[0], None), self._round(edges[1], None)
        short, long = min(height, width), max(height, width)
        if self.shorter is None:
            scale = self.longer / long if self.longer else 1.0
        else:
            scale = self.shorter / short
            if self.longer:
                scale = min(scale, self.longer / long)
        if not self.enlarge:
            scale = min(scale, 1.0)
        return self._round(height * scale, self.longer), self._round(width * scale, self.longer)

    def _round(self, edge: float, limit: int | None) -> int:
        m = self.multiple
        rounded = max(1, int(edge / m + 0.5)) * m
        if limit is not None and rounded > limit:
            rounded = max(1, limit // m) * m
        return rounded


def load_image(source: ImageSource, rule: ResizeRule, limits: ImageLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Decode and resize: uint8 [h, w, 3] RGB of size `rule.target(...)`. Raises BadImage.

    A photo that lies on its side (EXIF) is resized first and turned then, which moves far fewer bytes.
    """
    pixels, orientation = _decode(source, limits)
    height, width = pixels.shape[:2]
    turned = orientation >= 5
    target = rule.target(width, height) if turned else rule.target(height, width)
    limits.check_pixels(*target, verb="would be resized to")
    return _orient(resize(pixels, target[::-1] if turned else target), orientation)


def decode_image(source: ImageSource, *, limits: ImageLimits = DEFAULT_LIMITS) -> np.ndarray:
    """The picture as a person sees it: uint8 [h, w, 3] RGB. Raises BadImage.

    source: encoded bytes, a path, a PIL image, an array or a tensor. Files: JPEG, PNG, GIF, WebP, BMP, TIFF, PPM,
        JPEG 2000, AVIF; the first frame of an animation; EXIF orientation applied; CMYK, palette, grey and 1-bit
        become RGB; 16 bits become 8 by their high byte; what is transparent is laid on white; colour profiles are
        not applied. Arrays are [h, w], [h, w, 1 | 3 | 4] or [1 | 3 | 4, h, w] (tensors: the latter first) of uint8,
        bool, uint16 (high byte), other integers within 0..255, or floats within 0..1 (times 255, rounded).
    """
    return _orient(*_decode(source, limits))


def _decode(source: ImageSource, limits: ImageLimits) -> tuple[np.ndarray, int]:
    """Pixels as stored, uint8 [h, w, 3], and their EXIF orientation."""
    if isinstance(source, Image.Image):
        return _from_pil(source, limits)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            return _from_bytes(read_limited(path, limits), limits)
        except BadImage as error:
            raise BadImage(f"{path}: {error}") from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), limits)
    if isinstance(source, np.ndarray):
        return _from_array(source, limits, channels_first=False), 1
    if hasattr(source, "detach") and hasattr(source, "dtype"):  # a tensor, without importing torch to ask
        tensor = source.detach().cpu()
        tensor = tensor.float() if "bfloat16" in str(tensor.dtype) else tensor  # which NumPy lacks
        return _from_array(tensor.numpy(), limits, channels_first=True), 1
    raise BadImage(f"is a {type(source).__name__}, not a path, bytes, a PIL image, an array or a tensor")


def read_limited(path: Path, limits: ImageLimits) -> bytes:
    """A file's bytes, or BadImage when it cannot be read or is too large (then it is not read)."""
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE) and not path.exists():
        raise BadImage("is a URL, which is not opened here; download it and give its bytes or its path")
    try:
        with open(path, "rb") as file:
            limits.check_bytes(os.fstat(file.fileno()).st_size)
            data = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a NUL or half a surrogate in the name
        raise BadImage(f"is no name of a file ({error})") from error
    limits.check_bytes(len(data))
    return data


def _from_bytes(data: bytes, limits: ImageLimits) -> tuple[np.ndarray, int]:
    limits.check_bytes(len(data))
    with _open(data, limits) as image:
        limits.check_pixels(image.height, image.width)
        if simplejpeg is not None and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            fast = _decode_jpeg(data)
            if fast is not None:
                return fast, _orientation(image)
        return _from_pil(image, limits)


@functools.cache
def _formats() -> tuple[str, ...]:
    """FORMATS as far as this Pillow has them: older ones lack AVIF."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """The image with its header read and nothing decoded."""
    if not data:
        raise BadImage("is empty")
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(found[1]):,} pixels" if found else "too many pixels"
        raise BadImage(f"has {size}, more than the {limits.max_pixels:,} allowed") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"is not an image in a format that can be read ({', '.join(_formats())})") from error
    except Exception as error:  # Pillow's plugins raise many kinds on a broken header
        raise BadImage(f"has a damaged header ({_reason(error)})") from error


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """RGB by libjpeg directly, with Pillow's settings; None when Pillow should have the last word."""
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return pixels
    except ValueError as error:
        # libjpeg fills what is missing with grey and only warns. Other warnings (stray bytes) do no harm.
        if "remature end" in str(error):
            raise BadImage("is cut off: the JPEG data ends too early") from error
        return None


def _from_pil(image: Image.Image, limits: ImageLimits) -> tuple[np.ndarray, int]:
    """uint8 [h, w, 3] of a PIL image's present frame, and the EXIF orientation that is still to be applied."""
    limits.check_pixels(image.height, image.width)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # every plugin has its own
        raise BadImage(f"is damaged or cut off ({_reason(error)})") from error
    return _to_rgb(image), _orientation(image)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(np.asarray(image), image.mode)
    try:
        if image.mode == "RGB" and "transparency" not in image.info:
            return np.array(image)  # a copy that may be written to, as a decoded JPEG may
        if image.has_transparency_data:
            colours = image.convert("RGBA")
            return np.array(Image.alpha_composite(Image.new("RGBA", colours.size, WHITE), colours).convert("RGB"))
        return np.array(image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise BadImage(f"has colours of a kind that cannot become RGB ({image.mode})") from error


def _from_deep_grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of more than 8 bits: 0..65535 by its high byte, floats within 0..1."""
    if mode == "F":
        return _from_array(values, ImageLimits(max_pixels=values.size), channels_first=False)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("has 32-bit values outside 0..65535; save it with 8 or 16 bits")
    return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata does not make a photo unusable
        return 1
    return value if value in range(2, 9) else 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror [h, w, 3] as the EXIF orientation 1..8 says; C-contiguous."""
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a[:, ::-1].swapaxes(0, 1),
    }[orientation](pixels)
    return np.ascontiguousarray(turned)


def _from_array(array: np.ndarray, limits: ImageLimits, *, channels_first: bool) -> np.ndarray:
    """[h, w], [h, w, c] or [c, h, w] with c 1, 3 or 4, of any plain number type, as uint8 [h, w, 3]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise BadImage(f"is an array of shape {list(array.shape)}, not [h, w] or [h, w, channels]")
    first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if not first and not last:
        raise BadImage(f"is an array of shape {list(array.shape)}, where no axis holds 1, 3 or 4 channels")
    if first and (channels_first or not last):
        array = array.transpose(1, 2, 0)
    limits.check_pixels(*array.shape[:2])
    array = _to_uint8(array)
    if array.shape[2] == 4:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise BadImage(f"is an array of {array.dtype} with values outside 0..255")
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise BadImage(f"is an array of {array.dtype} with values outside 0..1; give uint8 for 0..255")
        return (array * 255 + 0.5).astype(np.uint8)
    raise BadImage(f"is an array of {array.dtype}, not of numbers")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] to uint8 [*size, 3], bilinear with antialiasing; the same array when the size is right."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    import torch

    if not pixels.flags.writeable:  # torch warns of such arrays; nothing is written here
        pixels = pixels.copy()
    # The batch axis comes before the permutation: with its strides this way PyTorch sees channels-last, 5 times faster.
    planes = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def collate_images(images: Sequence[np.ndarray], size_divisor: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of images of any sizes.

    images: uint8 [h, w, 3] each. Returns pixel_values uint8 [I, 3, H, W] (channels-last in memory, what a CNN likes
    best) and image_sizes int64 [I, 2], the valid (h, w) of each. Images of one size are not padded at all; else zeros
    are put right and below, up to the largest edges rounded up to a multiple of `size_divisor`.
    """
    import torch

    if not images:
        raise ValueError("collate_images needs at least one image")
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64)
    height, width = (int(edge) for edge in sizes.amax(0))
    if bool((sizes == sizes[0]).all()):
        batch = np.empty((len(images), height, width, 3), np.uint8)
    else:
        height, width = (-(-edge // size_divisor) * size_divisor for edge in (height, width))
        batch = np.zeros((len(images), height, width, 3), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(batch).permute(0, 3, 1, 2), sizes


# Names whose grids do not depend on padding at any size, once the CNN zeroes what lies outside the valid area
# (design.md): they pad by kernel // 2 on every side and shrink by strided convolutions and max pooling alone.
_ANY_SIZE = re.compile(
    r"resnet(18|26|34|50|101|152|200)|wide_resnet(50|101)_2|resnext\d+_\d+x\d+d|resnext\d+"
    r"|regnet[xy]_\d+(_tv)?|efficientnet_lite\d"
)


def multiple_for_backbone(name: str, pool: bool = False, stride: int = 32) -> int:
    """What image edges must be a multiple of for this timm backbone: 1, or its total stride.

    1 for the plain ResNet, ResNeXt, RegNet and EfficientNet-Lite names, whose padded grid equals their own at every
    size. Every other name gets the total stride: TensorFlow "same" padding (`tf_*`), average pooling on the way down
    (`resnet50d`, CLIP ResNets) and patch stems (`convnext_*`) agree only there. `stride` is the CNN's own (timm's
    `feature_info.reduction()[-1]`); `pool` says that the 2 x 2 max pool follows, which doubles it.
    """
    architecture = name.rpartition("/")[2].partition(".")[0]
    if _ANY_SIZE.fullmatch(architecture):
        return 1
    return stride * (2 if pool else 1)
