"""`prepare`: from annotation files and images to prepared data.

The rows of every source are read one after another and spooled to disk, each image looked up once; then images are
checked, and each split's tables written. All of it happens in a temporary folder that is renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pixelbert.data.badrows import BadRows, as_listed
from pixelbert.data.checks import CHECKS, check_all
from pixelbert.data.collect import AUTO, HELD_OUT, Collector
from pixelbert.data.dividing import leaks, split_codes
from pixelbert.data.files import file_size, is_url
from pixelbert.data.formats.common import split_of_name
from pixelbert.data.formats.exclusion import Exclusions, load_exclusions
from pixelbert.data.images import ImageLimits
from pixelbert.data.output import machine_errors, new_folder
from pixelbert.data.progress import Progress
from pixelbert.data.records import FORMAT_VERSION, SPLITS, BadRow, ImageRef, PreparedData
from pixelbert.data.shards import ImageFinder, ShardWriter, Unpacker, image_suffix
from pixelbert.data.sources import SourceItem, parse_sources
from pixelbert.data.spool import Spool
from pixelbert.data.summary import print_summary, table1
from pixelbert.data.tables import Ints, WrittenSplit, write_split
from pixelbert.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from rich.console import Console

MARKER = "prepared.json"
_TRAIN = SPLITS.index("train")


@dataclass(frozen=True)
class _Job:
    """What is to be done: the files to read and the options that the steps need."""

    items: Sequence[SourceItem]
    lists: _Lists
    images: Sequence[str | Path]
    reader: Mapping[str, Any]
    val_fraction: float
    max_bad: int | None
    check_images: str = "none"
    limits: ImageLimits = field(default_factory=ImageLimits)
    shards: bool = False
    survey: bool = False


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
    image_map: Sequence[str | Path] = (),
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
    max_bad:       give up when more rows than this are bad. Default: of pairs any number is left out and listed, but
                   no image of val and test for having no caption; of questions and statements none, because their
                   scores are over all of a split.
    columns:       for csv and jsonl: our name -> the file's name, of the names in `formats.columns.COLUMNS`.
    image_data:    for visual_genome: image_data.json.
    image_map:     for vqa and nlvr2: JSON files from what the annotations call an image to its file name.
    console:       where to print the summary; None prints nothing.

    Raises UsageError for wrong options, DataError when a file is damaged or a whole split is bad, MachineError when
    the disk is full; then nothing is written.
    """
    if is_url(out):
        raise UsageError(f"{out}: prepared data is written to a local folder; copy it to its URL afterwards")
    if check_images not in CHECKS:
        raise UsageError(f"check_images is '{check_images}'; {nearest(check_images, CHECKS)}")
    _check_utf8(out)
    out = Path(out)
    job = _job(format, sources, images, split, exclude, val_fraction, max_bad, merge_restval=merge_restval,
               columns=columns, delimiter=delimiter, image_data=image_data, image_map=image_map)  # fmt: skip
    job = replace(job, check_images=check_images, limits=limits or ImageLimits(), shards=shards)
    _check_apart(job, out)
    with new_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        _write_info(folder, _fill(folder, job))
    data = PreparedData(out)
    if console is not None:
        print_summary(data.info, console, f"Prepared data in {out}")
    return data


def survey(
    format: str,
    sources: Sequence[str | Path],
    *,
    images: Sequence[str | Path] = (),
    split: str | None = None,
    exclude: Sequence[str | Path] = (),
    merge_restval: bool = False,
    val_fraction: float = 0.0,
    max_bad: int | None = None,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    image_data: str | Path | None = None,
    image_map: Sequence[str | Path] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Count what `prepare` would find, and write nothing: the annotation files are read, and no image is opened.

    An image that is not there is counted ("images_missing") and its rows count as good, so that one can look at
    annotations before fetching the photos. Arguments and errors are those of `prepare`; the answer is what
    `PreparedData.info` would be.
    """
    job = _job(format, sources, images, split, exclude, val_fraction, max_bad, merge_restval=merge_restval,
               columns=columns, delimiter=delimiter, image_data=image_data, image_map=image_map)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pixelbert-") as folder, machine_errors(Path(folder)):
        info = _fill(Path(folder), replace(job, survey=True))
    if console is not None:
        print_summary(info, console, "Counted only, nothing is written")
    return info


def _job(
    format: str,
    sources: Sequence[str | Path],
    images: Sequence[str | Path],
    split: str | None,
    exclude: Sequence[str | Path],
    val_fraction: float,
    max_bad: int | None,
    **reader: Any,
) -> _Job:
    if not 0.0 <= val_fraction < 1.0:
        raise UsageError(f"val_fraction is {val_fraction}, expected a share from 0 to below 1")
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    _check_utf8(*images, *sources)
    items = parse_sources(format, sources, split, reader)
    for name, value in {**reader, "split": split, "exclude": exclude}.items():
        if value and not any(name in item.format.options for item in items):
            formats = ", ".join(sorted({item.name for item in items}))
            raise UsageError(f"the option {name} means nothing to the format {formats}")
    return _Job(items, _Lists.load(items, exclude), images, reader, val_fraction, max_bad)


def _check_apart(job: _Job, out: Path) -> None:
    """Neither may lie in the other: writing would change the source, or replacing `out` would delete it."""
    out = out.resolve()
    for source in [*(file for item in job.items for file in (item.file, item.beside)), *job.images]:
        if source is None or is_url(source):
            continue
        path = Path(source).resolve()
        inside = path in (out, *out.parents) and (path / MARKER).exists()
        if inside or out in path.parents:
            raise UsageError(f"{out}: --out and the source {source} lie in each other; choose another place")


def _check_utf8(*paths: str | Path) -> None:
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:  # Python's stand-ins for bytes that are none
            raise DataError(f"{path!r}: the name is not UTF-8, which tables of paths need; rename it") from error


def _holds_out(item: SourceItem) -> bool:
    """Whether photos of a source must stay out of training: a Karpathy file says which, COCO has files of val."""
    if item.name == "coco":
        return (item.split or split_of_name(item.file)) not in ("", "train", "restval")
    return item.name == "karpathy"


@dataclass(frozen=True)
class _Lists:
    """Photos to leave out: as the user says, and for Visual Genome also those of the sets it is mixed with."""

    given: Exclusions
    visual_genome: Exclusions
    notes: tuple[str, ...] = ()

    @staticmethod
    def load(items: Sequence[SourceItem], lists: Sequence[str | Path]) -> _Lists:
        given = load_exclusions(lists)
        mixed = [item.file for item in items if _holds_out(item) and item.file not in lists]
        if not mixed or not any(item.name == "visual_genome" for item in items):
            return _Lists(given, given)
        names = ", ".join(Path(file).name for file in mixed)
        note = f"Visual Genome photos that {names} holds out were left out too"
        return _Lists(given, load_exclusions([*lists, *mixed]), (note,))

    def idle(self) -> list[str]:
        """A note for each of the user's lists that names no photo of the data."""
        met = self.given.met | self.visual_genome.met
        idle = [name for name, ids in self.given.ids_of.items() if ids.isdisjoint(met)]
        return [f"--exclude {name} names no photo of this data" for name in idle]


def _fill(folder: Path, job: _Job) -> dict[str, Any]:
    """Write the bad rows and every split into `folder`. Returns the content of prepared.json."""
    with (
        closing(BadRows(folder / "bad_rows.jsonl", job.max_bad)) as bad,
        closing(Spool(folder / "spool.arrow")) as spool,
    ):
        rows = Collector(spool, bad)
        unpacker = Unpacker(folder / "unpacked")
        notes = [*job.lists.notes, *_read_all(job, rows, unpacker)]
        spool.finish()
        usable = _usable_images(spool, rows, bad, job)
        split_of = split_codes(spool, rows, job.val_fraction, notes)
        good = _good_rows(spool, rows, bad, usable, split_of)
        _check_complete(job, rows, bad, _captionless(good, spool, rows, bad))
        notes += [*_incomplete(bad), *leaks(good, spool, rows), *job.lists.idle()]
        written = {SPLITS[code]: _write(folder, SPLITS[code], spool, good[code], rows, job) for code in good}
    (folder / "spool.arrow").unlink()
    if job.shards:
        shutil.rmtree(unpacker.folder, ignore_errors=True)
    return _describe(job, rows, bad, written, notes)


def _captionless(good: Mapping[int, Ints], spool: Spool, rows: Collector, bad: BadRows) -> dict[int, list[BadRow]]:
    """{split code: a bad row of each image that is named without any text}, of the held-out splits."""
    image = spool.numbers("image")
    told = {code: {rows.image_ids[i] for i in np.unique(image[chosen])} for code, chosen in good.items()}
    found = {code: list(of_split) for code, of_split in bad.captionless.items()}
    for code, image_id, row in rows.textless:
        known = told.setdefault(code, set())
        if image_id not in known:
            known.add(image_id)
            found.setdefault(code, []).append(row)
    return found


def _check_complete(job: _Job, rows: Collector, bad: BadRows, captionless: Mapping[int, list[BadRow]]) -> None:
    """A score is over all of a split, so no row of it is left out unless the user allows it.

    Of pairs rows may be missing, which a note tells; an image of val or test that has no caption is a mistake.
    """
    if not bad.total or job.max_bad is not None or job.survey:
        return
    first, count, of = bad.first[0], bad.total, ""
    if rows.task == "pairs":
        code = next((code for code in HELD_OUT if code in captionless), None)
        if code is None:
            return
        first, count, of = captionless[code][0], len(captionless[code]), f" of {SPLITS[code]}"
    more = f", one of {count:,} bad rows{of}" if count > 1 else ""
    raise DataError(
        f"{first.file}: {first.place}: {first.reason}{more}; a score is over all of a split, so nothing was"
        f" written (--max-bad {bad.total} leaves such rows out)"
    )


def _incomplete(bad: BadRows) -> list[str]:
    """A note for every held-out split that lacks rows."""
    notes = []
    for code in HELD_OUT:
        if count := bad.of_split[code]:
            rows = "1 row was" if count == 1 else f"{count:,} rows were"
            notes.append(f"{rows} left out of split '{SPLITS[code]}' as bad: a score is not over all of it")
    return notes


def _write_info(folder: Path, info: Mapping[str, Any]) -> None:
    with open(folder / MARKER, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_all(job: _Job, rows: Collector, unpacker: Unpacker) -> list[str]:
    """Read every source. Returns what is worth telling."""
    files = [file for i in job.items for file in (i.file, i.beside) if file is not None and not is_url(file)]
    total = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    cache: dict[Any, Any] = {}
    notes: list[str] = []
    with Progress("reading", total, "B") as progress:
        for item in job.items:
            before = rows.rows_seen()
            exclude = job.lists.visual_genome if item.name == "visual_genome" else job.lists.given
            file = Path(unpacker.plain(str(item.file))) if item.name == "webdataset" else item.file
            reader = item.format.read(
                file, **job.reader, split=item.split, exclude=exclude, notes=notes, label=item.file, name=item.title,
                annotations=item.beside, on_read=progress.advance,
            )  # fmt: skip
            finder = ImageFinder(job.images, item.guessed, unpacker=unpacker, cache=cache)
            rows.read(item, reader, finder, keep_missing=job.survey)
            if rows.rows_seen() == before and item.name != "webdataset":  # a tar may be empty: no download succeeded
                raise DataError(f"{item.file}: holds no row")
    if not rows.rows_seen():
        raise DataError(f"{job.items[0].file}: holds no sample")
    return notes


def _usable_images(spool: Spool, rows: Collector, bad: BadRows, job: _Job) -> npt.NDArray[np.bool_]:
    """Which images pass the check; the rows of those that do not go to the list."""
    usable = np.ones(len(rows.refs), dtype=bool)
    if job.check_images == "none":
        return usable
    reasons: dict[int, str] = {}
    with Progress("checking images", len(rows.refs), "images") as progress:
        checked = check_all(rows.refs, job.check_images, job.limits, progress.advance)
        for number, reason in enumerate(checked):
            if reason:
                usable[number] = False
                reasons[number] = reason
    if reasons:
        image, image2, codes = (spool.numbers(name) for name in ("image", "image2", "split"))
        for row in np.flatnonzero(~(usable[image] & (usable[image2] | (image2 < 0)))).tolist():
            wrong = int(image[row]) if int(image[row]) in reasons else int(image2[row])
            ref, name = rows.refs[wrong], rows.image_ids[wrong]
            told = f"'{ref.file}'" if ref.offset < 0 else f"'{name}' in '{ref.file}' at byte {ref.offset}"
            bad.add(spool.bad(row, f"image {told} {reasons[wrong]}"), int(codes[row]))
    return usable


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
            bad.add(spool.bad(later, f"id '{identity}' is repeated in split {name}; first at {file}: {place}"), code)
        chosen = np.setdiff1d(chosen, [later for later, _ in repeated], assume_unique=True)
        if len(chosen):
            out[code] = chosen
        elif count := rows.seen[code] + (rows.seen[AUTO] if code == _TRAIN else 0):
            raise _all_bad(f"all {count:,} rows of split '{name}' are bad", bad, code)
    if not out:
        raise _all_bad("no row can be used", bad, -1)
    return out


def _all_bad(what: str, bad: BadRows, code: int) -> DataError:
    first = bad.first_of.get(code) or (bad.first_of.get(AUTO) if code == _TRAIN else None)
    first = first or (bad.first[0] if bad.first else None)
    if first is None:
        return DataError(f"{what}: every one was left out by the exclusion lists")
    return DataError(f"{first.file}: {what}; the first: {first.place}: {first.reason}")


def _write(folder: Path, name: str, spool: Spool, chosen: Ints, rows: Collector, job: _Job) -> WrittenSplit:
    writer = ShardWriter(folder / name, "images") if job.shards else None

    def place(image: int, row: int) -> ImageRef:
        ref = rows.refs[image]
        if writer is not None:
            data = ref.read()
            ref = writer.add(f"{row:08d}{image_suffix(data)}", data)
        if not is_url(ref.file):
            path = os.path.abspath(ref.file)
            inside = path.startswith(str(folder) + os.sep)
            length = ref.length if ref.offset >= 0 else file_size(path)
            ref = ImageRef(os.path.relpath(path, folder) if inside else path, ref.offset, length)
        progress.advance(1)
        return ref

    with Progress(f"writing {name}", 0, "images") as progress:
        written = write_split(folder / name, spool, chosen, rows.image_ids, place)
    if writer is not None:
        writer.close()
    return written


def _describe(
    job: _Job, rows: Collector, bad: BadRows, written: Mapping[str, WrittenSplit], notes: Sequence[str]
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
        "task": rows.task,
        "splits": splits,
        "sources": [
            {"format": i.name, "file": str(i.file)} | ({"annotations": str(i.beside)} if i.beside else {})
            for i in job.items
        ],
        "images_checked": job.check_images,
        "own_shards": job.shards,
        "images_missing": rows.missing,
        "bad_rows": {
            "total": bad.total,
            "splits": {name: bad.of_split[code] for code, name in enumerate(SPLITS) if bad.of_split[code]},
            "kinds": dict(bad.kinds.most_common(20)),
            "first": [as_listed(row) for row in bad.first],
        },
        "excluded": {reason: {"images": i, "rows": r} for reason, (i, r) in rows.excluded.items()},
        "notes": list(notes),
        "table1": table1(splits, rows.task),
        "fingerprint": digest.hexdigest(),
        "places": hashlib.sha256("".join(w.places for w in written.values()).encode()).hexdigest(),
    }
