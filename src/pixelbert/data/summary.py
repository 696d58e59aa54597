"""What `prepare` tells: counts, beside the paper's Table 1, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Table 1 of the paper: task, dataset, photos, texts (as printed), the splits it trains on; then our source name.
PAPER_TABLE_1 = (
    ("pretraining", "VG", "101K", "5.06M", "train+val", "visual_genome"),
    ("pretraining", "COCO", "106K", "533K", "train+restval", "coco"),
    ("VQA", "VQA 2.0", "204K", "1.1M", "train+val", "vqa"),
    ("NLVR2", "NLVR2", "214K", "107K", "train", "nlvr2"),
    ("retrieval", "COCO", "92K", "460K", "train+restval", "coco"),
    ("retrieval", "Flickr30K", "32K", "160K", "train+restval", "flickr30k"),
)


# What data of one task may be used for there.
_USES = {"pairs": ("pretraining", "retrieval"), "vqa": ("VQA",), "nlvr2": ("NLVR2",)}


def table1(splits: Mapping[str, Any], prepared_for: str) -> list[dict[str, Any]]:
    """The rows of the paper's Table 1 with our counts over the same splits; None where we have none of a dataset."""
    rows = []
    for task, dataset, images, texts, used, source in PAPER_TABLE_1:
        ours = [
            splits[s]["sources"][source]
            for s in used.split("+")
            if source in splits.get(s, {}).get("sources", {}) and task in _USES.get(prepared_for, ())
        ]
        rows.append(
            {
                "task": task,
                "dataset": dataset,
                "splits": used,
                "paper_images": images,
                "paper_texts": texts,
                "images": sum(o["images"] for o in ours) if ours else None,
                "texts": sum(o["records"] for o in ours) if ours else None,
            }
        )
    return rows


def print_summary(info: Mapping[str, Any], console: Console, title: str) -> None:
    """Print the description of prepared data (`PreparedData.info`)."""
    from rich.table import Table

    console.print(title, highlight=False, markup=False, soft_wrap=True)
    counts = Table("split", "source", "images", "records")
    for split, content in info["splits"].items():
        for source, ours in content["sources"].items():
            counts.add_row(split, source, f"{ours['images']:,}", f"{ours['records']:,}")
        if len(content["sources"]) > 1:
            counts.add_row(split, "all", f"{content['images']:,}", f"{content['records']:,}")
    console.print(counts)
    console.print("Beside the paper's Table 1: ours / from the paper", highlight=False)
    paper = Table("task", "dataset", "splits", "images", "texts")
    for row in info["table1"]:
        ours_images, ours_texts = (_number(row[k]) for k in ("images", "texts"))
        paper.add_row(
            row["task"], row["dataset"], row["splits"], f"{ours_images} / {row['paper_images']}",
            f"{ours_texts} / {row['paper_texts']}",
        )  # fmt: skip
    console.print(paper)
    for reason, left in info["excluded"].items():
        console.print(f"Left out as {reason}: {left['images']:,} images, {left['rows']:,} texts", highlight=False)
    if info["images_missing"]:
        console.print(f"Images not found: {info['images_missing']:,}", highlight=False)
    for note in info["notes"]:
        console.print(f"Note: {note}", highlight=False, markup=False, soft_wrap=True)
    if "train" in info["splits"] and "val" not in info["splits"]:
        console.print(
            "No split 'val': training needs one; --val-fraction 0.1 takes a tenth of the images for it, or name a split"
            " in the files", highlight=False, soft_wrap=True,
        )  # fmt: skip
    _print_bad(info["bad_rows"], console)
    console.print(f"Fingerprint {info['fingerprint']}", highlight=False)


def _print_bad(bad: Mapping[str, Any], console: Console) -> None:
    if not bad["total"]:
        console.print("No bad rows.")
        return
    console.print(f"Bad rows, left out: {bad['total']:,} (all of them in bad_rows.jsonl)", highlight=False)
    for kind, count in bad["kinds"].items():
        console.print(f"  {count:,} x {kind}", highlight=False, markup=False, soft_wrap=True)
    for row in bad["first"]:
        console.print(
            f"  {row['file']}: {row['place']}: {row['reason']}", highlight=False, markup=False, soft_wrap=True
        )


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
