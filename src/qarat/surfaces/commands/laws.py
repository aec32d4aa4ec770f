"""Commands of the `law` verbs: measurements to laws, laws to answers. What only lists or reads waits for no numpy."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from qarat.ground.disk import write_whole
from qarat.ground.errors import ArgumentError, UserError
from qarat.stages.laws.forms import FORMS
from qarat.stages.laws.tables import Table, bundled_tables, join, load_table, narrow, write_table
from qarat.surfaces.commands import Lines, Screen
from qarat.surfaces.options.laws import (
    LawCheckOptions,
    LawDataOptions,
    LawFitOptions,
    LawFormsOptions,
    LawPredictOptions,
)
from qarat.values.budgets import parse_loss_budget
from qarat.values.records.files import decode_record, encode_record
from qarat.values.records.law import Law
from qarat.values.records.law_data import parse_count, spell_value


def law_data(options: LawDataOptions, screen: Screen) -> Lines:
    """List the bundled tables, or show one."""
    if not options.table:
        if options.where or options.out is not None:
            raise ArgumentError("`where` and `out` are about one table; name it")
        screen.show(*bundled_tables())
        return "try next: qarat law data t1", "try next: qarat law fit t1"
    table = narrow(load_table(options.table), options.where)
    if options.out is not None:
        write_whole(options.out, write_table(table).encode())
    screen.show(table)
    return () if options.out is None else (f"written: {shlex.quote(str(options.out))}",)


def law_forms(options: LawFormsOptions, screen: Screen) -> Lines:
    """List the functional forms."""
    screen.show(FORMS)
    return ()


def law_fit(options: LawFitOptions, screen: Screen) -> Lines:
    """Fit one form, or all that the data allow."""
    from qarat.stages.laws.fitting import fit_law

    table = _table(options.data, options.where)
    law = fit_law(
        table,
        options.form,
        method=options.method,
        draws=options.draws,
        seed=options.seed,
        standard_error=options.standard_error,
        progress=screen.progress,
    )
    write_whole(options.out, encode_record(law))
    screen.show(law)
    out = shlex.quote(str(options.out))
    return f"written: {out}", f"try next: qarat law predict {out} {_example(law)}"


def law_predict(options: LawPredictOptions, screen: Screen) -> Lines:
    """Answer with what a law gives for the one variable that is left open."""
    from qarat.stages.laws.prediction import predict

    law = _law(options.law)
    screen.show(predict(law, _known(options), options.form or ""))
    return ()


def law_check(options: LawCheckOptions, screen: Screen) -> Lines:
    """Set a law beside rows that it has not seen."""
    from qarat.stages.laws.checking import check_law

    table = _table(options.data, options.where)
    screen.show(check_law(_law(options.law), table, options.form or "", options.of or ""))
    return ()


def _table(names: Sequence[str], where: Sequence[str]) -> Table:
    """The rows of several tables that meet the conditions."""
    if not names:
        raise ArgumentError("give DATA: a CSV file, or a table's name (see `qarat law data`)")
    return narrow(join([load_table(name) for name in names]), where)


def _example(law: Law) -> str:
    """A question that a law can answer, at the end of what was fitted: its form's first variable within a budget."""
    fit = next(fit for fit in law.fits if fit.form == law.shown)
    form = FORMS.load(fit.form)
    answer = form.terms[0].variable
    known = {v: largest for v, (_, largest) in fit.domain.items()} | fit.group
    flags = [] if law.best or len({fit.form for fit in law.fits}) == 1 else ["--form", fit.form]
    for variable in form.question:
        if variable == "loss":
            increase = 100 * math.expm1(fit.group.get("loss", math.log1p(0.05)))
            flags += ["--budget", f"ppl+{increase:.4g}%"]
        elif variable != answer:
            flags += [f"--{variable}", spell_value(variable, known[variable])]
    return shlex.join(flags)


def _law(name: str) -> Law:
    """A law file, or a published law."""
    from qarat.stages.laws.prediction import published_law, published_names

    if Path(name).exists():
        return decode_record(Path(name), Law)
    if name in FORMS.forms and name not in published_names():
        shipped = [other for other in published_names() if other.startswith(f"{name}:")]
        way = f"give one of {', '.join(shipped)}, or fit it" if shipped else "nobody printed coefficients of it: fit it"
        raise UserError(f"{name} is a form; {way} (qarat law fit DATA --form {name}) and give the law's file")
    if name not in published_names():
        raise UserError(f"{name} is no file, and no published law; published: {', '.join(published_names())}")
    return published_law(name)


def _count(argument: str, text: str | None) -> float | None:
    try:
        return None if text is None else parse_count(text)
    except UserError as error:
        raise UserError(f"`{argument}`: {error}") from None


def _known(options: LawPredictOptions) -> dict[str, float]:
    """The variables that were given, in the units of a law."""
    given: dict[str, float | None] = {
        "size": _count("size", options.size),
        "tokens": _count("tokens", options.tokens),
        "ratio": options.ratio,
        "block": options.block,
        "bits": options.bits,
    }
    if options.budget is not None:
        given["loss"] = parse_loss_budget(options.budget).nats
    return {variable: value for variable, value in given.items() if value is not None}
