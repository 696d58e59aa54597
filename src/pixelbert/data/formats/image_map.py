"""Image map files: a JSON object from what an annotation file calls an image to the name of the image's file.

Some sets are published in the format of another one and keep their own photos: `image_ids.json` ({"1": "a.jpg"}) for
the image ids of VQA files, `image_map_dev.json` ({"dev-0-0-img0.png": "a.jpg"}) for the image names of NLVR2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pixelbert.data.files import is_url
from pixelbert.data.formats.common import load_json
from pixelbert.errors import DataError


class ImageMap:
    """The file name of each image; `files` says for messages where it stands."""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.files = ", ".join(str(path) for path in paths)
        self._names: dict[str, str] = {}
        for path in paths:
            self._read(path)

    @classmethod
    def given_or_beside(cls, given: Sequence[Path | str], source: Path | str, names: Iterable[str]) -> ImageMap | None:
        """The map of the files `given`, else of the first of `names` that lies beside `source`; None for neither."""
        if given:
            return cls(given)
        if is_url(source):
            return None
        folder = Path(source).parent
        beside = [folder / (name + end) for name in names for end in ("", ".gz")]
        return next((cls([path]) for path in beside if path.is_file()), None)

    def get(self, name: str) -> str | None:
        """The file name, None when the map has none."""
        return self._names.get(name)

    def _read(self, path: Path | str) -> None:
        content = load_json(path)
        if not isinstance(content, dict) or not content:
            raise DataError(f'{path}: is no image map, a JSON object such as {{"1": "photo.jpg"}}')
        for key, name in content.items():
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"{path}: '{key}' is {name!r}, expected the name of an image file")
            if self._names.setdefault(key, name.strip()) != name.strip():
                raise DataError(f"{path}: '{key}' is '{name}' here, and '{self._names[key]}' in an earlier map")
