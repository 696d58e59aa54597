"""Drawn photos and small annotation files for the tests of the data folder."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., bytes]


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """The encoded bytes of a picture of `size` (width, height); every seed gives another one."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def karpathy_image(name: str, split: str, texts: Sequence[Any], first_id: int, **more: Any) -> dict[str, Any]:
    """One entry of a Karpathy file."""
    sentences = [{"raw": text, "tokens": [], "imgid": 0, "sentid": first_id + k} for k, text in enumerate(texts)]
    ids = [s["sentid"] for s in sentences]
    return {"filename": name, "imgid": 0, "split": split, "sentences": sentences, "sentids": ids, **more}


def write_json(path: Path, content: Any) -> Path:
    """Write JSON, gzipped when the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write a tar; `mode` "w:gz" compresses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """A folder as Flickr8k's: dataset_flickr8k.json, six photos in a train tar, two in a val tar, two texts each."""
    folder = tmp_path / "flickr8k"
    names = {split: [f"{split}{i}_ab.jpg" for i in range(count)] for split, count in (("train", 6), ("val", 2))}
    images = [
        karpathy_image(name, split, [f"{name} one", f"{name} two"], 10 * i)
        for i, (split, name) in enumerate((s, n) for s in names for n in names[s])
    ]
    write_json(folder / "dataset_flickr8k.json", {"images": images, "dataset": "flickr8k"})
    for split, own in names.items():
        write_tar(folder / f"{split}-00000.tar", {n: picture(k + 10 * len(own)) for k, n in enumerate(own)})
    return folder


@pytest.fixture
def tools() -> Any:
    """The functions above, for tests (there are no packages to import them from)."""

    class Tools:
        picture = staticmethod(picture)
        karpathy_image = staticmethod(karpathy_image)
        write_json = staticmethod(write_json)
        write_tar = staticmethod(write_tar)

    return Tools
