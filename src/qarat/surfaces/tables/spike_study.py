"""A spike study: the verdict, protection in every setting, its controls, orders, methods, and 6 bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qarat.jobs.spike_study.arms import ANY_KIND, ENDS, EVERY_DOWN, INPUTS, NAIVE, PROTECTED, PROTECTED_IN, SAME_KIND
from qarat.jobs.spike_study.comparisons import ablated, duels, inside, steadied
from qarat.jobs.spike_study.published import CAVEAT, PublishedResults, published_of
from qarat.jobs.spike_study.verdicts import verdict_lines
from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import (
    count,
    decimals,
    fixed,
    interval,
    loss_and_error,
    perplexity_change,
    share,
    sites_listed,
)
from qarat.values.records.spike_study import MAIN, SpikeArm, SpikeStudy, brief_setting
from qarat.values.sites import short_name

ROWS = 16  # of remedies for 6 bits; the worse ones are in the record
_PROTECTION = ("naive", "protection", "control")
_HEADS = (
    "naive", "pro-\ntected", "E4M3", "E5M2", "inputs\nonly", "random\nkind", "random\nsites", "every\ndown", "ends",
)  # fmt: skip
_LABELS = (NAIVE, PROTECTED, *PROTECTED_IN.values(), INPUTS, SAME_KIND, ANY_KIND, EVERY_DOWN, ENDS)
"""Of the arms under `_HEADS`; the random ones are several, of which the best stands there."""


def show_spike_study(record: SpikeStudy) -> Parts:
    """A study, finished or not: what it says, then what that rests on."""
    yield title("spike study", record.provenance.model, f"protected: {sites_listed(record.sites, 'none')}")
    yield from verdict_lines(record)
    for heading, parts in _sections(record):
        yield from ("", bold(heading), *parts)
    yield from ("", *map(dim, _lines(record)))
    if known := published_of(record.name).rows:
        yield from ("", bold("Published for this checkpoint"), *show_published(PublishedResults(known)))


def show_published(figures: PublishedResults) -> Parts:
    """Published figures, with what they are not."""
    yield table(texts("model", "what", "as printed", "source"), figures.rows)
    yield dim(CAVEAT)


def _sections(record: SpikeStudy) -> Iterator[tuple[str, Parts]]:
    """Headings and what stands below them."""
    yield (
        "Loss over float in every setting (nats per token): naive, protected sites, controls (the best random one)",
        iter([_settings(record)]),
    )
    for setting in record.settings:
        if not record.of_group(setting, "order", "method", "ablation"):
            continue
        brief = brief_setting(setting)
        if record.of_group(setting, "order", "method"):
            yield f"{brief}: protection and controls", _arms(record, record.of_group(setting, *_PROTECTION))
        if record.of_group(setting, "ablation"):
            yield f"{brief}: one part alone low, all else in float (nats)", iter([_ablations(record, setting)])
        if record.of_group(setting, "order"):
            heading = f"{brief}: the first k sites of an order in float, loss over float (nats)"
            yield heading, iter([_orders(record, setting)])
        if record.of_group(setting, "method"):
            yield f"{brief}: general-purpose methods, alone and with protection (nats)", _methods(record, setting)
    if remedies := steadied(record):
        yield f"What makes 6 bits steady: the best {min(ROWS, len(remedies))} of {len(remedies)}", iter([_six(record)])
    if elsewhere := [a for a in record.arms if a.group in ("bos", "calibration") and not a.failure]:
        yield "BOS by other rules, and scales from another kind of text", _arms(record, elsewhere, scheme=True)


def _settings(record: SpikeStudy) -> DataTable:
    columns = (*texts("bits, weights,\ninputs", wrap=False), *numbers(*_HEADS))
    return table(
        columns, ((brief_setting(s), *(_least(record, s, label) for label in _LABELS)) for s in record.settings)
    )


def _least(record: SpikeStudy, setting: str, label: str) -> str:
    """The least loss of the arms of a label in a setting; empty where there are none."""
    if label in (SAME_KIND, ANY_KIND):
        arms = [a for a in record.of_group(setting, *_PROTECTION) if a.label.startswith(label)]
    else:
        arms = [a for a in (record.find(setting, label),) if a is not None]
    return fixed(min(record.over_float(a).nats for a in arms), 4) if arms else ""


def _arms(record: SpikeStudy, arms: Sequence[SpikeArm], *, scheme: bool = False) -> Parts:
    losses = [record.over_float(a) for a in arms]
    digits = decimals([loss.nats for loss in losses])
    heads = ("perplexity", "Δ loss\n(nats)", "± SE", "Δ perplexity\n(%)", "protected\n(%)", "bits per\nweight")
    rows = (
        (
            arm.label,
            brief_setting(arm.setting) if scheme else "",
            fixed(record.perplexity(arm), 3),
            *loss_and_error(loss, digits),
            perplexity_change(loss.nats),
            share(arm.share, 1, 2),
            fixed(arm.bits, 3),
        )
        for arm, loss in zip(arms, losses, strict=True)
    )
    yield table((*texts("arm"), *texts("setting", wrap=False), *numbers(*heads)), rows).used()
    yield from map(dim, notes_of(arms))


def notes_of(arms: Sequence[SpikeArm]) -> Iterator[str]:
    """What else is to be known of arms; what two of them share once."""
    first_of = {"; ".join(filter(None, (*arm.transforms, arm.note))): arm for arm in reversed(arms)}
    for note, arm in reversed(first_of.items()):
        if note not in ("", arm.label):
            yield f"{arm.label.partition(': ')[0]}: {note}"


def _orders(record: SpikeStudy, setting: str) -> DataTable:
    places = [a.label.removeprefix("by ").partition(", k=") for a in record.of_group(setting, "order")]
    counts = sorted({int(k) for _, _, k in places})
    naive = record.find(setting, NAIVE)
    rows: list[tuple[str, ...]] = []
    for order in dict.fromkeys(name for name, _, _ in places):
        arms = [naive, *(record.find(setting, f"by {order}, k={k}") for k in counts)]
        losses = ("" if a is None else fixed(record.over_float(a).nats, 4) for a in arms)
        longest = max((a.protected for a in arms[1:] if a is not None), key=len)
        rows.append((order, *losses, " ".join(map(short_name, longest))))
    columns = (*texts("in the order of"), *numbers("k=0", *(f"k={k}" for k in counts)), *texts("first sites"))
    return table(columns, rows)


def _methods(record: SpikeStudy, setting: str) -> Parts:
    against = duels(record, setting)
    if not against:
        yield from _arms(record, record.of_group(setting, "method"))
        return
    heads = ("alone", "± SE", "with\nprotection", "alone over\nprotection", "95 % interval")
    rows = (
        (
            duel.arm.label,
            *loss_and_error(duel.loss, 4),
            "" if duel.together is None else fixed(duel.together.nats, 4, sign=True),
            fixed(duel.over.nats, 4, sign=True),
            interval(duel.over.interval, 4),
            duel.winner,
        )
        for duel in against
    )
    yield table((*texts("method"), *numbers(*heads), *texts("wins")), rows)
    yield from map(dim, notes_of([duel.arm for duel in against]))


def _ablations(record: SpikeStudy, setting: str) -> DataTable:
    parts = ablated(record, setting)
    digits = decimals([p.loss.nats for p in parts])
    heads = ("parameters\nlow (%)", "Δ loss\n(nats)", "± SE", "Δ perplexity\n(%)", "of naive's\nloss (%)")
    rows = (
        (
            p.part,
            share(p.low, 1),
            *loss_and_error(p.loss, digits),
            perplexity_change(p.loss.nats),
            fixed(100 * p.share, 0),
        )
        for p in parts
    )
    return table((*texts("part"), *numbers(*heads)), rows)


def _six(record: SpikeStudy) -> DataTable:
    heads = numbers("Δ loss\n(nats)", "± SE", "Δ perplexity\n(%)", "bits per\nweight")
    rows = (
        (
            tried.remedy,
            *loss_and_error(tried.loss, 4),
            perplexity_change(tried.loss.nats),
            fixed(tried.arm.bits, 3),
            inside(tried.loss, record.budget_nats),
        )
        for tried in steadied(record)[:ROWS]
    )
    return table((*texts("bits, weights, inputs: remedy"), *heads, *texts("within\nbudget")), rows)


def _lines(record: SpikeStudy) -> Iterator[str]:
    """What it was measured on, what the rules say, what is left out and what is missing."""
    yield f"protected sites: {record.chosen}"
    for rule in record.rules:
        flagged = ", ".join(".".join(s.split(".")[-2:]) for s in rule.flagged) or "nothing"
        margin = "" if math.isnan(rule.margin) else f" (margin {fixed(rule.margin, 2)})"
        yield f"rule {rule.rule}, {rule.statement}: {flagged}{margin}"
    if base := record.floats.get(MAIN):
        tokens = f"{count(len(base.nats), 'window')}, {record.provenance.convention}, {len(set(base.sources))} sources"
        yield f"float perplexity {fixed(base.perplexity, 3)} on the report tokens: {tokens}; all errors paired"
    yield from (f"left out: {left.what}: {left.why}" for left in record.left)
    yield from (f"could not be measured: {a.name}: {a.failure}" for a in record.arms if a.failure)
    if record.missing:
        yield f"not finished; missing: {record.missing_words}; the same command goes on"
