"""Prepared data as a source, to put several prepared folders together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelbert.data.records import Example, PreparedData


def locate(source: Path) -> list[Path]:
    """The folder itself. Raises DataError when it is no prepared folder."""
    PreparedData(source)
    return [Path(source)]


def read(source: Path, *, split: str | None = None, **_: Any) -> Iterator[Example]:
    """Every record again, its image where it lies. `split` puts all of them into one split.

    Raises DataError when the folder is not whole.
    """
    data = PreparedData(source)
    for name in data.info["splits"]:
        content = data.split(name)
        for record in range(content.num_records):
            row, second = int(content.image_of[record]), content.second_image(record)
            image = content.image_id(row)
            yield Example(
                content.record_id(record),
                split or name,
                image,
                image,
                content.text(record),
                f"{source}: {name} record {record}",
                image2=content.image_id(second) if second >= 0 else None,
                target=content.target(record) or None,
                source=content.source(record),
                ref=content.image(row),
                ref2=content.image(second) if second >= 0 else None,
            )
