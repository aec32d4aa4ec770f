"""Where the numbers come from: model, tokens, versions, command and the records' hashes. No places on a machine."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from qarat.surfaces.page.story import Story, origin
from qarat.surfaces.tables.data import table, texts
from qarat.surfaces.tables.html import definitions, element, escaped, table_html
from qarat.values.records.law import Law
from qarat.values.records.prices import Menu, Protection
from qarat.values.records.scores import Evaluation
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats

_SETS = {"calibration": (ActivationStats,), "selection": (Menu, Protection), "report": (Evaluation, SpikeStudy)}


def provenance(story: Story) -> str:
    """The facts that decide every number above, and the hash of every record."""
    records = table_html(table(texts("record", "SHA-256 of its content"), story.hashes.items()))
    parts = [definitions(_facts(story), "provenance"), element("div", records, class_="scroll", tabindex="0")]
    if story.command:
        parts.insert(0, element("pre", escaped(portable_command(story.command)), tabindex="0", aria_label="command"))
    return "".join(parts)


def portable_command(command: str) -> str:
    """A command without the places of one machine: of an absolute path, its last part."""
    return shlex.join(_portable(word) for word in shlex.split(command))


def _portable(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    path = PurePath(value)
    away = path.is_absolute() or value.startswith("~") or ".." in path.parts
    return option + equals + (path.name if away else value)


def _facts(story: Story) -> list[tuple[str, ...]]:
    """Terms and what is said of them; what all records share stands once."""
    origins = [where for record in story.records if (where := origin(record))]
    facts: list[tuple[str, ...]] = []
    if origins:
        facts.append(("model", *dict.fromkeys(p.model for p in origins)))
    for name, kinds in _SETS.items():
        tokens = [r.provenance for kind in kinds for r in story.all(kind)]
        if tokens:
            facts.append((f"{name} tokens", *dict.fromkeys(f"{p.tokens} ({p.convention})" for p in tokens)))
    if origins:
        facts.append(("versions", *dict.fromkeys(_versions(p.versions) for p in origins)))
        facts.append(("arithmetic, seed", *dict.fromkeys(f"{p.dtype}, seed {p.seed}" for p in origins)))
    if law := story.one(Law):
        facts.append(("measurements", f"{law.data}: {law.data_hash}", _versions(law.versions), f"seed {law.seed}"))
    return facts


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
