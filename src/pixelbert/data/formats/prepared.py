"""Prepared data as a source, to put several prepared folders together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelbert.data.records import Example, PreparedData


def locate(source: Path) -> list[Path]:
    """The folder itself. Raises DataError when it is no prepared folder."""
    PreparedData(source)
    return [Path(source)]


def task_of(source: Path, **_: Any) -> str:
    """The task that the folder was prepared for."""
    return PreparedData(source).task


def read(source: Path, *, split: str | None = None, **_: Any) -> Iterator[Example]:
    """Every record again, its image where it lies. `split` puts all of them into one split.

    Raises DataError when the folder is not whole.
    """
    data = PreparedData(source)
    for name in data.info["splits"]:
        content = data.split(name)
        images = [(content.image_id(i), content.image(i)) for i in range(content.num_images)]
        for number, record in enumerate(content.rows()):
            image, ref = images[record["image"]]
            image2, ref2 = images[record["image2"]] if record["image2"] >= 0 else (None, None)
            yield Example(
                record["id"],
                split or name,
                image,
                image,
                record["text"],
                f"{source}: {name} record {number}",
                image2=image2,
                target=json.loads(record["target"]) if record["target"] else None,
                source=record["source"],
                ref=ref,
                ref2=ref2,
            )
