"""A verification as tables: what each engine will run, module by module, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.surfaces.tables.layout import GAP, bare, cells, count, decimals, fixed, label, number, table, title, words
from qarat.values.records.verification import Finding, LogitsComparison, ModuleReport, Verification
from qarat.values.sites import short_name

NAMES = 6  # modules named in one cell
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def show_verification(record: Verification) -> RenderableType:
    """What engines will run of a folder, how it compares, what was found, and the verdict."""
    where = f"for {record.generation}" if record.generation else ""
    parts: list[RenderableType] = [
        title("verification", record.provenance.model, record.folder, f"format {record.format or 'missing'}", where),
        words("; ".join(f"{name}: {versions}" for name, versions in record.engines.items()), "dim"),
        Text(),
        _modules(record.modules),
    ]
    for weights in record.weights:
        said = f"{weights.equal} of {count(weights.sites, 'projection')} equal to the run's, weights and scales"
        if weights.equal < weights.sites:
            said += f"; largest relative difference {weights.largest:.2g}"
        parts += [Text(), words(said)]
    if record.logits:
        parts += [Text(), _logits(record.logits)]
    for damage in record.damage:
        digits = decimals([damage.nats])
        loss, error = fixed(damage.nats, digits, sign=True), fixed(damage.standard_error, digits)
        parts += [Text(), words(f"damage {loss} ± {error} nats per token over the float model, paired")]
    if record.findings:
        parts += [Text(), _findings(record.findings)]
    errors = sum(f.severity == "error" for f in record.findings)
    warnings = sum(f.severity == "warning" for f in record.findings)
    verdict = "passes" if record.passed else "fails"
    said = f"{record.folder} {verdict}: {count(errors, 'error')}, {count(warnings, 'warning')}"
    return Group(*parts, Text(), words(said, "bold"))


def _modules(modules: Sequence[ModuleReport]) -> RenderableType:
    """One row for each way of being stored and run, with the modules that share it."""
    rows: dict[tuple[str, tuple[tuple[str, str], ...]], list[ModuleReport]] = {}
    for module in modules:
        kinds = ", ".join(f"{leaf} {of.partition(' ')[0]}" for leaf, of in module.stored.items())
        rows.setdefault((kinds, tuple((run.engine, run.scheme) for run in module.runs)), []).append(module)
    out = table(label("modules"), label("stored as"), label("runs"))
    for (stored, runs), members in rows.items():
        schemes: dict[str, list[str]] = {}
        for engine, scheme in runs:
            schemes.setdefault(scheme, []).append(engine)
        if len(schemes) == 1:
            said = next(iter(schemes))
        else:
            said = "\n".join(f"{', '.join(names)}: {scheme}" for scheme, names in schemes.items())
        cells(out, _names([m.name for m in members]), stored or "nothing", said)
    return out


def _logits(comparisons: Sequence[LogitsComparison]) -> RenderableType:
    out = table(label("logits compared"), number("relative\ndifference"), number("limit"), number("windows"))
    for c in comparisons:
        cells(out, c.what, f"{c.relative:.2g}", f"{c.limit:g}" if c.limit else "reported", str(c.windows))
    return out


def _findings(findings: Sequence[Finding]) -> RenderableType:
    out = bare(label("", wrap=False), label(""))
    for f in findings:
        where = [said for said in (_names(f.modules), f"in {', '.join(f.engines)}" if f.engines else "") if said]
        cells(out, Text(f.severity, _STYLES[f.severity]), f.what)
        if where:
            cells(out, "", GAP.join(where))
        cells(out, "", f"→ {f.remedy}", style="dim")
    return out


def _names(modules: Sequence[str]) -> str:
    """The first modules by their short names, and how many more there are."""
    shown = [short_name(name) if any(p.isdigit() for p in name.split(".")) else name for name in modules[:NAMES]]
    return ", ".join(shown) + (f" and {len(modules) - NAMES} more" if len(modules) > NAMES else "")
