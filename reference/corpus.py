"""The corpus of the reference family: Python source that every machine has after set-up.

What: the standard library and three pinned dependencies (torch, transformers, scipy). Nothing is downloaded, so the
family can be retrained from nothing anywhere; and source code has the long-range structure from which attention sinks
and activation spikes arise. What is given up: English. The models speak Python only.

How: every file is read as UTF-8; a file more than half of whose distinctive lines already stand in files kept before
it is a near-duplicate and is left out; the rest is shuffled with a seed and split *by whole files*. Calibration,
selection and report come from the standard library only, because their text ships with the package under Python's
licence. `corpus.tsv` records every file with its hash; `check` says which files differ on this machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
LISTING = HERE / "corpus.tsv"
PACKAGES = ("torch", "transformers", "scipy")
SEED = 20410
MIN_BYTES, MAX_BYTES = 1_000, 200_000  # smaller files hold no window; larger ones are tables and generated code
MIN_LINE = 20  # characters; shorter lines ("else:", "return x") say nothing about copying
HELD_OUT_BYTES = {"calibration": 400_000, "selection": 500_000, "report": 900_000}
TRAIN_BYTES = 50_000_000


def python_files() -> Iterator[tuple[str, Path]]:
    """Every candidate file as (name, path), in a fixed order; the name starts with the package it belongs to."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    site = Path(sysconfig.get_path("purelib"))
    roots = [("stdlib", stdlib)] + [(name, site / name) for name in PACKAGES]
    if missing := [label for label, root in roots if not root.is_dir()]:
        raise SystemExit(f"corpus: not installed at the usual place: {', '.join(missing)}; run `make setup` first")
    for label, root in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if "site-packages" in parts or "__pycache__" in parts:
                continue
            if MIN_BYTES <= path.stat().st_size <= MAX_BYTES:
                yield "/".join((label, *parts)), path


def read_distinct() -> dict[str, str]:
    """Name to text of every file that is no near-duplicate of one before it."""
    seen: set[int] = set()
    kept: dict[str, str] = {}
    for name, path in python_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # the standard library's tests hold files that are broken on purpose
        lines = {hash_line(line) for line in map(str.strip, text.splitlines()) if len(line) >= MIN_LINE}
        if not lines or len(lines & seen) > len(lines) / 2:
            continue
        seen |= lines
        kept[name] = text
    return kept


def hash_line(line: str) -> int:
    """A stable 64-bit hash (Python's own changes from run to run)."""
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "big")


def file_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split(texts: dict[str, str], seed: int = SEED) -> dict[str, list[str]]:
    """Split name -> file names: whole files, at random, held-out splits from the standard library only."""
    names = sorted(texts)
    random.Random(seed).shuffle(names)
    library = [n for n in names if n.startswith("stdlib/") and "/test" not in n and "/idlelib/" not in n]
    splits: dict[str, list[str]] = {}
    taken: set[str] = set()
    for label, budget in HELD_OUT_BYTES.items():
        chosen, size = [], 0
        for name in library:
            length = len(texts[name])
            # Small enough that no single file dominates a split, large enough to hold a few windows.
            if name in taken or not 4_000 <= length <= 30_000:
                continue
            if size + length > budget:
                break
            chosen.append(name)
            size += length
        taken.update(chosen)
        splits[label] = chosen
    train, size = [], 0
    for name in names:
        if name not in taken and size < TRAIN_BYTES:
            train.append(name)
            size += len(texts[name])
    splits["train"] = train
    return splits


def build() -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """The corpus of this machine, split -> [(name, text)], and how it differs from the recorded listing.

    Another Python or package version gives other files, and models trained on them differ from the shipped ones.
    """
    texts = read_distinct()
    splits = split(texts)
    corpus = {label: [(name, texts[name]) for name in names] for label, names in splits.items()}
    return corpus, check(texts, splits)


def describe(differences: list[str], most: int | None = 20) -> str:
    """The differences from the recorded listing in words, so many of them; empty where there are none."""
    if not differences:
        return ""
    lines = [
        f"corpus: {len(differences)} files differ from {LISTING.name}; results will differ from the shipped models:"
    ]
    lines += [f"  {line}" for line in differences[:most]]
    left = len(differences) - len(differences[:most])
    return "\n".join([*lines, *([f"  … and {left} more: python reference/corpus.py check"] if left else [])])


def check(texts: dict[str, str], splits: dict[str, list[str]]) -> list[str]:
    """What is missing, new or changed against the recorded listing, one line each; empty if nothing is."""
    if not LISTING.exists():
        return [f"{LISTING.name} is missing"]
    recorded = {}
    for line in LISTING.read_text().splitlines()[1:]:
        label, digest, name = line.split("\t")
        recorded[name] = (label, digest)
    here = {name: (label, file_hash(texts[name])) for label, names in splits.items() for name in names}
    lines = [f"missing: {name}" for name in sorted(recorded.keys() - here.keys())]
    lines += [f"not recorded: {name}" for name in sorted(here.keys() - recorded.keys())]
    lines += [f"changed: {name}" for name in sorted(here.keys() & recorded.keys()) if here[name] != recorded[name]]
    return lines


def record(out: Path = LISTING) -> None:
    """Write the listing: split, hash and name of every file used."""
    texts = read_distinct()
    rows = ["split\tsha256[:16]\tfile"]
    for label, names in split(texts).items():
        rows += [f"{label}\t{file_hash(texts[name])}\t{name}" for name in names]
    out.write_text("\n".join(rows) + "\n")


def write_slices(folder: Path) -> None:
    """Write the three held-out splits as JSON lines (`source`, `text`), as the package ships them."""
    corpus, differences = build()
    if differences:
        print(describe(differences))
    folder.mkdir(parents=True, exist_ok=True)
    for label in HELD_OUT_BYTES:
        lines = [json.dumps({"source": name, "text": text}, ensure_ascii=False) for name, text in corpus[label]]
        (folder / f"{label}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Record or check the corpus, or write its held-out text slices.")
    parser.add_argument("action", choices=["record", "check", "slices"])
    parser.add_argument("-o", "--out", type=Path, default=HERE.parent / "src" / "qarat" / "bundled" / "text")
    arguments = parser.parse_args()
    if arguments.action == "record":
        record()
    elif arguments.action == "slices":
        write_slices(arguments.out)
    else:
        corpus, differences = build()
        print(describe(differences, most=None) if differences else "no file differs from the listing")
        for label, files in corpus.items():
            print(f"{label:12s} {len(files):5d} files {sum(len(t) for _, t in files) / 1e6:7.2f} MB")
        sys.exit(bool(differences))
