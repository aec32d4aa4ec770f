"""A spike study as tables: the verdict, protection in every setting, its controls, orders, methods, and 6 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.jobs.spike_study.arms import ANY_KIND, ENDS, EVERY_DOWN, INPUTS, NAIVE, PROTECTED, PROTECTED_IN, SAME_KIND
from qarat.jobs.spike_study.published import CAVEAT, PublishedResults, published_of
from qarat.jobs.spike_study.verdicts import duels, inside, steadied, verdict_lines
from qarat.surfaces.tables.layout import (
    cells,
    count,
    decimals,
    fixed,
    label,
    number,
    perplexity_change,
    share,
    table,
    title,
    words,
)
from qarat.values.records.origin import Difference
from qarat.values.records.spike_study import MAIN, SpikeArm, SpikeStudy, brief_setting
from qarat.values.sites import short_name

ROWS = 16  # of remedies for 6 bits; the worse ones are in the record


def show_spike_study(record: SpikeStudy) -> RenderableType:
    """A study, finished or not: what it says, then what that rests on."""
    sites = ", ".join(map(short_name, record.sites)) or "none"
    parts: list[RenderableType] = [title("spike study", record.provenance.model, f"protected: {sites}")]
    parts += [words(line) for line in verdict_lines(record)]
    for heading, body in _tables(record):
        parts += [Text(), words(heading, "bold"), body]
    parts += [Text(), *(words(line, "dim") for line in _lines(record))]
    if known := published_of(record.name).rows:
        parts += [Text(), words("Published for this checkpoint", "bold"), show_published(PublishedResults(known))]
    return Group(*parts)


def show_published(figures: PublishedResults) -> RenderableType:
    """Published figures, with what they are not."""
    out = table(label("model"), label("what"), label("as printed"), label("source"))
    for row in figures.rows:
        cells(out, *row)
    return Group(out, words(CAVEAT, "dim"))


def _tables(record: SpikeStudy) -> Iterator[tuple[str, RenderableType]]:
    yield (
        "Loss over float in every setting (nats per token): naive, protected sites, controls (the best random one)",
        _settings(record),
    )
    rich = [s for s in record.settings if record.of_group(s, "order", "method")]
    for setting in rich:
        yield (
            f"{brief_setting(setting)}: protection and controls",
            _arms(record, record.of_group(setting, *_PROTECTION)),
        )
        if record.of_group(setting, "order"):
            yield (
                f"{brief_setting(setting)}: the first k sites of an order in float, loss over float (nats)",
                _orders(record, setting),
            )
        if against := _methods(record, setting):
            yield f"{brief_setting(setting)}: general-purpose methods, alone and with protection (nats)", against
    if remedies := steadied(record):
        yield f"What makes 6 bits steady: the best {min(ROWS, len(remedies))} of {len(remedies)}", _six(record)
    if elsewhere := [a for a in record.arms if a.group in ("bos", "calibration") and not a.failure]:
        yield "BOS by other rules, and scales from another kind of text", _arms(record, elsewhere, scheme=True)


_PROTECTION = ("naive", "protection", "control")


def _settings(record: SpikeStudy) -> RenderableType:
    heads = (
        "naive",
        "pro-\ntected",
        "E4M3",
        "E5M2",
        "inputs\nonly",
        "random\nkind",
        "random\nsites",
        "every\ndown",
        "ends",
    )
    out = table(label("bits, weights,\ninputs", wrap=False), *map(number, heads))
    labels = (NAIVE, PROTECTED, *PROTECTED_IN.values(), INPUTS, SAME_KIND, ANY_KIND, EVERY_DOWN, ENDS)
    for setting in record.settings:
        losses = [
            [record.over_float(a).nats for a in record.of_group(setting, *_PROTECTION) if a.label.startswith(words_)]
            if words_ in (SAME_KIND, ANY_KIND)
            else [record.over_float(a).nats for a in (record.find(setting, words_),) if a is not None]
            for words_ in labels
        ]
        cells(out, brief_setting(setting), *(fixed(min(found), 4) if found else "" for found in losses))
    return out


def _arms(record: SpikeStudy, arms: Sequence[SpikeArm], *, scheme: bool = False) -> RenderableType:
    digits = decimals([record.over_float(a).nats for a in arms])
    columns = [label("setting", wrap=False)] if scheme else []
    out = table(
        label("arm"), *columns, number("perplexity"), number("Δ loss\n(nats)"), number("± SE"),
        number("Δ perplexity\n(%)"), number("protected\n(%)"), number("bits per\nweight"),
    )  # fmt: skip
    for arm in arms:
        loss = record.over_float(arm)
        name = [arm.label, *([brief_setting(arm.setting)] if scheme else [])]
        cells(
            out, *name, fixed(record.perplexity(arm), 3), *_loss(loss, digits),
            perplexity_change(loss.nats), share(arm.share, 1, 2), fixed(arm.bits, 3),
        )  # fmt: skip
    return Group(out, *_notes(arms))


def notes_of(arms: Sequence[SpikeArm]) -> Iterator[str]:
    """What else is to be known of arms; what two of them share once."""
    said = {"; ".join(filter(None, (*arm.transforms, arm.note))): arm for arm in reversed(arms)}
    for note, arm in reversed(said.items()):
        if note not in ("", arm.label):
            yield f"{arm.label.partition(': ')[0]}: {note}"


def _notes(arms: Sequence[SpikeArm]) -> Iterator[RenderableType]:
    return (words(note, "dim") for note in notes_of(arms))


def _orders(record: SpikeStudy, setting: str) -> RenderableType:
    arms = record.of_group(setting, "order")
    split = {a.label: a.label.removeprefix("by ").partition(", k=") for a in arms}
    counts = sorted({int(k) for _, _, k in split.values()})
    out = table(label("in the order of"), number("k=0"), *(number(f"k={k}") for k in counts), label("first sites"))
    naive = record.find(setting, NAIVE)
    base = "" if naive is None else fixed(record.over_float(naive).nats, 4)
    for order in dict.fromkeys(name for name, _, _ in split.values()):
        found = {k: record.find(setting, f"by {order}, k={k}") for k in counts}
        row = ["" if a is None else fixed(record.over_float(a).nats, 4) for a in found.values()]
        longest = max((a.protected for a in found.values() if a is not None), key=len)
        cells(out, order, base, *row, " ".join(map(short_name, longest)))
    return out


def _methods(record: SpikeStudy, setting: str) -> RenderableType | None:
    against = duels(record, setting)
    if not against:
        alone = record.of_group(setting, "method")
        return _arms(record, alone) if alone else None
    out = table(
        label("method"), number("alone"), number("± SE"), number("with\nprotection"), number("alone over\nprotection"),
        number("95 % interval"), label("wins"),
    )  # fmt: skip
    for duel in against:
        low, high = (fixed(bound, 4, sign=True) for bound in duel.over.interval)
        cells(
            out, duel.arm.label, *_loss(duel.loss, 4),
            "" if duel.together is None else fixed(duel.together.nats, 4, sign=True),
            fixed(duel.over.nats, 4, sign=True), f"{low} to {high}", duel.winner,
        )  # fmt: skip
    return Group(out, *_notes([duel.arm for duel in against]))


def _six(record: SpikeStudy) -> RenderableType:
    tried = steadied(record)
    out = table(
        label("bits, weights, inputs: remedy"), number("Δ loss\n(nats)"), number("± SE"), number("Δ perplexity\n(%)"),
        number("bits per\nweight"), label("within\nbudget"),
    )  # fmt: skip
    for remedy in tried[:ROWS]:
        within = inside(remedy.loss, record.budget_nats)
        row = (*_loss(remedy.loss, 4), perplexity_change(remedy.loss.nats), fixed(remedy.arm.bits, 3), within)
        cells(out, remedy.remedy, *row)
    return out


def _loss(difference: Difference, digits: int) -> tuple[str, str]:
    return fixed(difference.nats, digits, sign=True), fixed(difference.standard_error, digits)


def _lines(record: SpikeStudy) -> list[str]:
    """What it was measured on, what the rules say, what is left out and what is missing."""
    base = record.floats.get(MAIN)
    lines = [f"protected sites: {record.chosen}"]
    for rule in record.rules:
        flagged = ", ".join(".".join(s.split(".")[-2:]) for s in rule.flagged) or "nothing"
        margin = "" if math.isnan(rule.margin) else f" (margin {fixed(rule.margin, 2)})"
        lines.append(f"rule {rule.rule}, {rule.statement}: {flagged}{margin}")
    if base is not None:
        tokens = f"{count(len(base.nats), 'window')}, {record.provenance.convention}, {len(set(base.sources))} sources"
        lines.append(f"float perplexity {fixed(base.perplexity, 3)} on the report tokens: {tokens}; all errors paired")
    lines += [f"left out: {left.what}: {left.why}" for left in record.left]
    lines += [f"could not be measured: {a.name}: {a.failure}" for a in record.arms if a.failure]
    if record.missing:
        lines.append(f"not finished; missing: {record.missing_words}; the same command goes on")
    return lines
