"""`prepare`: from annotation files and images to prepared data.

The rows of every source are read one after another and spooled to disk, each image looked up once; then images are
checked, and each split's tables written. All of it happens in a temporary folder that is renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixelbert.data.badrows import BadRows
from pixelbert.data.checks import CHECKS, check_all
from pixelbert.data.collect import AUTO, Collector
from pixelbert.data.files import is_url
from pixelbert.data.formats.exclusion import Exclusions, load_exclusions
from pixelbert.data.images import ImageLimits
from pixelbert.data.output import new_folder
from pixelbert.data.progress import Progress
from pixelbert.data.records import FORMAT_VERSION, SPLITS, ImageRef, PreparedData
from pixelbert.data.shards import ImageFinder, ShardWriter, Unpacker
from pixelbert.data.sources import SourceItem, parse_sources
from pixelbert.data.spool import Spool
from pixelbert.data.summary import print_summary, table1
from pixelbert.data.tables import Ints, WrittenSplit, write_split
from pixelbert.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from rich.console import Console

MARKER = "prepared.json"
_TRAIN, _VAL = SPLITS.index("train"), SPLITS.index("val")


@dataclass(frozen=True)
class _Options:
    """The options of `prepare` that its steps need."""

    shards: bool
    check_images: str
    val_fraction: float
    max_bad: int | None
    limits: ImageLimits
    reader: Mapping[str, Any]


def prepare(
    format: str,
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    images: Sequence[str | Path] = (),
    split: str | None = None,
    exclude: Sequence[str | Path] = (),
    merge_restval: bool = False,
    shards: bool = False,
    check_images: str = "header",
    val_fraction: float = 0.0,
    overwrite: bool = False,
    max_bad: int | None = None,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    image_data: str | Path | None = None,
    limits: ImageLimits | None = None,
    console: Console | None = None,
) -> PreparedData:
    """Turn annotation files and images into prepared data at `out`.

    format:        a name of `formats.FORMATS`, or "mix": then each source is "format=path" or "format:split=path".
    sources:       files or folders; a folder is searched for the file that the format expects and for its images.
    images:        folders, tar shards or URLs that hold the images, looked at before the sources' own folders.
    split:         the split of rows whose file names none (default train).
    exclude:       lists of photos to keep out of training: see `formats.exclusion.load_exclusions`.
    merge_restval: count Karpathy's restval as train.
    shards:        copy the images into tar shards inside `out`, so that the folder can be moved and used alone.
    check_images:  "header" looks at type, size and end of each image, "full" decodes it, "none" only finds it.
    val_fraction:  the share of images that become val where no split is named, drawn by a hash of the image's id.
    overwrite:     replace prepared data that already lies at `out`.
    max_bad:       give up when more rows than this are bad (default: any number is left out and listed).
    columns:       for csv and jsonl: our name -> the file's name of image, text, id, split.
    console:       where to print the summary; None prints nothing.

    Raises UsageError for wrong options, DataError when a file is damaged or a whole split is bad, MachineError when
    the disk is full; then nothing is written.
    """
    out = Path(out)
    options = _Options(
        shards, check_images, val_fraction, max_bad, limits or ImageLimits(),
        {"merge_restval": merge_restval, "columns": dict(columns or {}), "delimiter": delimiter,
         "image_data": image_data},
    )  # fmt: skip
    if check_images not in CHECKS:
        raise UsageError(f"check_images is '{check_images}'; {nearest(check_images, CHECKS)}")
    if not 0.0 <= val_fraction < 1.0:
        raise UsageError(f"val_fraction is {val_fraction}, expected a share from 0 to below 1")
    items = parse_sources(format, sources, split)
    _check_options(items, {**options.reader, "split": split, "exclude": exclude})
    _check_apart(items, out)
    lists = _Lists.load(items, exclude)
    with new_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        _fill(folder, items, images, lists, options)
    data = PreparedData(out)
    if console is not None:
        print_summary(data.info, console)
    return data


def _check_options(items: Sequence[SourceItem], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if value and not any(name in item.format.options for item in items):
            formats = ", ".join(sorted({item.name for item in items}))
            raise UsageError(f"the option {name} means nothing to the format {formats}")


def _check_apart(items: Sequence[SourceItem], out: Path) -> None:
    for item in items:
        if not is_url(item.file) and Path(item.file).resolve() in (out.resolve(), *out.resolve().parents):
            raise UsageError(f"{out}: --out lies in the source {item.file}; choose another place")


@dataclass(frozen=True)
class _Lists:
    """Photos to leave out: as the user says, and for Visual Genome also those of the sets it is mixed with."""

    given: Exclusions
    visual_genome: Exclusions
    notes: tuple[str, ...] = ()

    @staticmethod
    def load(items: Sequence[SourceItem], lists: Sequence[str | Path]) -> _Lists:
        given = load_exclusions(lists)
        mixed = [item.file for item in items if item.name == "karpathy" and item.file not in lists]
        if not mixed or not any(item.name == "visual_genome" for item in items):
            return _Lists(given, given)
        names = ", ".join(Path(file).name for file in mixed)
        note = f"Visual Genome photos that {names} holds out were left out too"
        return _Lists(given, load_exclusions([*lists, *mixed]), (note,))


def _fill(
    folder: Path, items: Sequence[SourceItem], images: Sequence[str | Path], lists: _Lists, options: _Options
) -> None:
    """Write everything into `folder`."""
    with closing(BadRows(folder / "bad_rows.jsonl", options.max_bad)) as bad:
        spool = Spool(folder / "spool.arrow")
        rows = Collector(spool, bad)
        unpacker = Unpacker(folder / "unpacked")
        notes = [*lists.notes, *_read_all(items, images, lists, options, rows, unpacker)]
        spool.close()
        usable = _usable_images(spool, rows, bad, options)
        split_of = _splits(spool, rows, options.val_fraction)
        good = _good_rows(spool, rows, bad, usable, split_of)
        notes += _leaks(good, spool, rows)
        written = {SPLITS[code]: _write(folder, SPLITS[code], spool, good[code], rows, options) for code in good}
        del spool
        (folder / "spool.arrow").unlink()
        if options.shards:
            shutil.rmtree(unpacker.folder, ignore_errors=True)
    info = _describe(items, rows, bad, written, notes, options)
    with open(folder / MARKER, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_all(
    items: Sequence[SourceItem],
    images: Sequence[str | Path],
    lists: _Lists,
    options: _Options,
    rows: Collector,
    unpacker: Unpacker,
) -> list[str]:
    """Read every source. Returns what is worth telling."""
    total = sum(os.path.getsize(i.file) for i in items if not is_url(i.file) and os.path.isfile(i.file))
    cache: dict[Any, Any] = {}
    notes: list[str] = []
    with Progress("reading", total, "B") as progress:
        for item in items:
            before = rows.rows_seen()
            exclude = lists.visual_genome if item.name == "visual_genome" else lists.given
            file = Path(unpacker.plain(str(item.file))) if item.name == "webdataset" else item.file
            reader = item.format.read(
                file, **options.reader, split=item.split, exclude=exclude, notes=notes, label=item.file,
                on_read=progress.advance,
            )  # fmt: skip
            rows.read(item, reader, ImageFinder(images, item.guessed, unpacker=unpacker, cache=cache))
            if rows.rows_seen() == before and item.name != "webdataset":  # a tar may be empty: no download succeeded
                raise DataError(f"{item.file}: holds no row")
    return notes


def _usable_images(spool: Spool, rows: Collector, bad: BadRows, options: _Options) -> npt.NDArray[np.bool_]:
    """Which images pass the check; the rows of those that do not go to the list."""
    usable = np.ones(len(rows.refs), dtype=bool)
    if options.check_images == "none":
        return usable
    reasons: dict[int, str] = {}
    with Progress("checking images", len(rows.refs), "images") as progress:
        checked = check_all(rows.refs, options.check_images, options.limits, progress.advance)
        for number, reason in enumerate(checked):
            if reason:
                usable[number] = False
                reasons[number] = reason
    if reasons:
        image, image2 = spool.numbers("image"), spool.numbers("image2")
        for row in np.flatnonzero(~(usable[image] & (usable[image2] | (image2 < 0)))).tolist():
            wrong = int(image[row]) if int(image[row]) in reasons else int(image2[row])
            ref, name = rows.refs[wrong], rows.image_ids[wrong]
            told = f"'{ref.file}'" if ref.offset < 0 else f"'{name}' in '{ref.file}' at byte {ref.offset}"
            bad.add(spool.bad(row, f"image {told} is unusable: {reasons[wrong]}"))
    return usable


def _splits(spool: Spool, rows: Collector, val_fraction: float) -> npt.NDArray[np.int8]:
    """The split code of every row; those whose file names none become train, or val by a hash of the image's id."""
    codes = spool.numbers("split").astype(np.int8)
    auto = np.flatnonzero(codes == AUTO)
    codes[auto] = _TRAIN
    if val_fraction and len(auto):
        images = spool.numbers("image")[auto]
        used = np.unique(images)
        place = np.array([hash_share(rows.image_ids[i]) for i in used])
        is_val = place < val_fraction
        if len(used) > 1 and not is_val.any():
            is_val[place.argmin()] = True
        if len(used) > 1 and is_val.all():
            is_val[place.argmax()] = False
        codes[auto] = np.where(is_val[np.searchsorted(used, images)], _VAL, _TRAIN)
    return codes


def hash_share(image_id: str) -> float:
    """A number in [0, 1) that depends on the image's id alone."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:7], "big") / 2**56


def _good_rows(
    spool: Spool, rows: Collector, bad: BadRows, usable: npt.NDArray[np.bool_], split_of: npt.NDArray[np.int8]
) -> dict[int, Ints]:
    """{split code: its rows that can be used}. Raises DataError when a whole split is bad."""
    image, image2 = spool.numbers("image"), spool.numbers("image2")
    good = usable[image] & (usable[image2] | (image2 < 0)) if len(image) else np.zeros(0, dtype=bool)
    out: dict[int, Ints] = {}
    for code, name in enumerate(SPLITS):
        chosen = np.flatnonzero(good & (split_of == code))
        repeated = spool.duplicates(chosen)
        for later, first in repeated:
            file, place = spool.where(first)
            identity = spool.value("id", later)
            bad.add(spool.bad(later, f"id '{identity}' is repeated in split {name}; first at {file}: {place}"))
        chosen = np.setdiff1d(chosen, [later for later, _ in repeated], assume_unique=True)
        if len(chosen):
            out[code] = chosen
        elif rows.seen[code]:
            raise _all_bad(f"all {rows.seen[code]:,} rows of split '{name}' are bad", bad)
    if not out:
        raise _all_bad("no row can be used", bad)
    return out


def _all_bad(what: str, bad: BadRows) -> DataError:
    first = bad.first[0] if bad.first else None
    if first is None:
        return DataError(f"{what}: every one was left out by the exclusion lists")
    return DataError(f"{first.file}: {what}; the first: {first.place}: {first.reason}")


def _leaks(good: Mapping[int, Ints], spool: Spool, rows: Collector) -> list[str]:
    """A note for every two splits that share an image (train and restval may)."""
    image, image2 = spool.numbers("image"), spool.numbers("image2")
    used = {code: np.setdiff1d(np.union1d(image[chosen], image2[chosen]), [-1]) for code, chosen in good.items()}
    notes = []
    for one in used:
        for other in used:
            shared = np.intersect1d(used[one], used[other]) if one < other else np.zeros(0, dtype=np.int64)
            names = SPLITS[one], SPLITS[other]
            if len(shared) and names != ("train", "restval"):
                notes.append(
                    f"LEAK: {len(shared):,} images are in both {names[0]} and {names[1]},"
                    f" for example {rows.refs[int(shared[0])].file}"
                )
    return notes


def _write(folder: Path, name: str, spool: Spool, chosen: Ints, rows: Collector, options: _Options) -> WrittenSplit:
    writer = ShardWriter(folder / name, "images") if options.shards else None

    def place(image: int, row: int) -> ImageRef:
        ref = rows.refs[image]
        if writer is not None:
            suffix = Path(rows.image_ids[image] if ref.offset >= 0 else ref.file).suffix
            ref = writer.add(f"{row:08d}{suffix.lower()}", ref.read())
        if not is_url(ref.file):
            path = os.path.abspath(ref.file)
            inside = path.startswith(str(folder) + os.sep)
            ref = ImageRef(os.path.relpath(path, folder) if inside else path, ref.offset, ref.length)
        progress.advance(1)
        return ref

    with Progress(f"writing {name}", 0, "images") as progress:
        written = write_split(folder / name, spool, chosen, rows.image_ids, place)
    if writer is not None:
        writer.close()
    return written


def _describe(
    items: Sequence[SourceItem],
    rows: Collector,
    bad: BadRows,
    written: Mapping[str, WrittenSplit],
    notes: Sequence[str],
    options: _Options,
) -> dict[str, Any]:
    """The content of prepared.json."""
    splits = {
        name: {
            "images": w.images,
            "records": w.records,
            "sources": {s: {"images": i, "records": r} for s, (i, r) in w.sources.items()},
        }
        for name, w in written.items()
    }
    digest = hashlib.sha256("".join(f"{name} {w.digest}\n" for name, w in written.items()).encode())
    return {
        "format": FORMAT_VERSION,
        "task": items[0].format.task,
        "splits": splits,
        "sources": [{"format": i.name, "file": str(i.file)} for i in items],
        "images_checked": options.check_images,
        "own_shards": options.shards,
        "bad_rows": {
            "total": bad.total,
            "kinds": dict(bad.kinds.most_common(20)),
            "first": [asdict(row) for row in bad.first],
        },
        "excluded": {reason: {"images": i, "rows": r} for reason, (i, r) in rows.excluded.items()},
        "notes": list(notes),
        "table1": table1(splits),
        "fingerprint": digest.hexdigest(),
    }
