"""Pictures of the sheet of examples, embedded in the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_PICTURE_BYTES = 1_050_000  # of all pictures together: with the attention sheets the page stays under 2 MB
MOST_LOOK_BYTES = 400_000  # of all attention sheets


class Pictures:
    """Embeds pictures of one folder as long as their bytes together stay within `most`."""

    def __init__(self, folder: Path, most: int = MOST_PICTURE_BYTES) -> None:
        self.folder, self.left = folder, most

    def embed(self, name: Any) -> str | None:
        """The picture as a data URI; None when it is missing, beyond the budget, or outside the sheet's own folder."""
        if not isinstance(name, str) or not re.fullmatch(r"examples/[\w-]+\.jpg", name):
            return None
        try:
            data = (self.folder / name).read_bytes()
        except OSError:
            return None
        if not data or len(data) > self.left:
            return None
        self.left -= len(data)
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    def embed_all(self, names: Any) -> list[str | None]:
        """Each of several pictures; [] when `names` is no list."""
        return (
            [self.embed(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else []
        )
