"""A calibration study: what every calibration loses on every test, and how much more than that on the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator

from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, numbers, table, texts, title
from qarat.surfaces.tables.wording import count, fixed, perplexity_change, with_error
from qarat.values.records.calibration_study import CalibrationStudy, TestText
from qarat.values.records.origin import Difference, spell_bounds


def show_calibration_study(record: CalibrationStudy) -> Parts:
    """A study, finished or not: what it says, both matrices, and what they rest on."""
    yield title("calibration study", record.provenance.model, record.low)
    yield from verdicts(record)
    yield from ("", bold("Loss over float (nats per token, ± SE): calibrated on the rows, measured on the columns"))
    yield losses(record)
    yield from (
        "",
        bold("How much more that is than calibrated on the column's own text, or else on the best (paired)"),
    )
    yield mismatches(record)
    yield from ("", *map(dim, conditions(record)))


def losses(record: CalibrationStudy) -> DataTable:
    """Calibrations down, tests across: the loss over float."""
    heads = (*texts("calibrated on"), *numbers("windows"), *numbers(*(test.name for test in record.tests)))
    rows = (
        (arm.name, str(arm.windows), *(with_error(record.over_float(arm, test)) for test in record.tests))
        for arm in record.measured
    )
    return table(heads, rows)


def mismatches(record: CalibrationStudy) -> DataTable:
    """Calibrations down, tests across: the loss over that of the column's reference, which itself has none."""
    references = {test: record.reference(test) for test in record.tests}
    rows = (
        (
            arm.name,
            *(
                "" if arm is base else with_error(record.over(arm, base, test))
                for test, base in references.items()
                if base
            ),
        )
        for arm in record.measured
    )
    return table((*texts("calibrated on"), *numbers(*(test.name for test in record.tests))), rows)


def verdicts(record: CalibrationStudy) -> Iterator[str]:
    """A sentence for every test: its reference, and the calibration that loses most beside it."""
    for test in record.tests:
        reference, others = record.reference(test), others_of(record, test)
        if reference is None or not others:
            continue
        name, worst = max(others.items(), key=lambda pair: pair[1].nats)
        apart = sum(_is_apart(more) for more in others.values())
        lost = record.over_float(reference, test).nats
        known = f"{apart} of {count(len(others), 'other')} beyond the 95 % interval"
        if math.isnan(worst.standard_error):
            known = "no error is known, as the text is one source"
        more = f"{fixed(worst.nats, 4, sign=True)}{spell_bounds(worst.nats, worst.standard_error, sign=True)}"
        yield (
            f"measured on {test.name}: calibrated on {reference.name} it loses {fixed(lost, 4, sign=True)} nats over "
            f"float; of the others {name} costs most beside that, {more}; {known}"
        )


def headline(record: CalibrationStudy) -> tuple[str, str]:
    """The dearest calibration beside a test's reference, in a number and a sentence."""
    more = [(loss, name, test) for test in record.tests for name, loss in others_of(record, test).items()]
    if not more:
        return "There is nothing to compare yet", ""
    worst, name, test = max(more, key=lambda m: m[0].nats)
    base = record.reference(test)
    assert base is not None  # or there were no others
    return (
        f"The wrong calibration text costs {perplexity_change(worst.nats)} % perplexity at the most",
        f"{record.low}, calibrated on {name} instead of {base.name}, measured on {test.name}.",
    )


def others_of(record: CalibrationStudy, test: TestText) -> dict[str, Difference]:
    """What every calibration but the reference loses over it on a test, paired, by name."""
    base = record.reference(test)
    return {arm.name: record.over(arm, base, test) for arm in record.measured if base is not None and arm is not base}


def _is_apart(more: Difference) -> bool:
    low, high = more.interval
    return low > 0 or high < 0


def conditions(record: CalibrationStudy) -> Iterator[str]:
    """What it was measured on, what could not be, and what is missing."""
    for test in record.tests:
        yield f"{test.name}: {count(test.windows, 'window')}, float perplexity {fixed(record.perplexity(test), 3)}"
    yield f"{record.provenance.convention}; a text of both is split by documents; errors are over windows, by source"
    yield "they say nothing of another choice of calibration windows (--seed)"
    yield from (f"could not be measured: {arm.name}: {arm.failure}" for arm in record.arms if arm.failure)
    if record.missing:
        yield f"not finished; missing: {', '.join(record.missing)}; the same command goes on"
