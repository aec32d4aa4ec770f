"""A verification: what each engine will run, module by module, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from qarat.surfaces.tables.data import DataTable, Marked, Parts, bold, dim, marked, numbers, pairs, table, texts, title
from qarat.surfaces.tables.wording import GAP, count, decimals, fixed
from qarat.values.records.origin import spell_bounds
from qarat.values.records.verification import Finding, LiveRun, ModuleReport, Verification
from qarat.values.sites import short_name

NAMES = 6  # modules named in one cell
_STYLES = {"error": "bold red", "not judged": "bold yellow", "warning": "yellow", "note": "dim"}


def show_verification(record: Verification) -> Parts:
    """What engines will run of a folder, how it compares, what was found, and the verdict."""
    target = f"for {record.generation}" if record.generation else ""
    subject = (record.folder, f"format {record.format or 'missing'}", target)
    yield title("verification", record.provenance.model, *subject)
    yield dim("; ".join(f"{name}: {versions}" for name, versions in record.engines.items()))
    if record.modules:
        yield from ("", _modules(record.modules))
    for weights in record.weights:
        apart = f"; largest relative difference {weights.largest:.2g}" if weights.equal < weights.sites else ""
        equal = f"{weights.equal} of {count(weights.sites, 'projection')}"
        yield from ("", f"{equal} equal to the run's, weights and scales{apart}")
    if record.logits:
        rows = (
            (c.what, f"{c.relative:.2g}", f"{c.limit:g}" if c.limit else "reported", str(c.windows))
            for c in record.logits
        )
        yield from ("", table((*texts("logits compared"), *numbers("relative\ndifference", "limit", "windows")), rows))
    for damage in record.damage:
        digits = decimals([damage.nats])
        bounds = spell_bounds(damage.nats, damage.standard_error, digits, sign=True)
        yield from ("", f"damage {fixed(damage.nats, digits, sign=True)} nats per token over the float model{bounds}")
    for live in record.live:
        yield from ("", *_live(live))
    if record.findings:
        yield from ("", pairs(row for finding in record.findings for row in _finding(finding)))
    counted = [count(len(record.errors), "error")]
    counted += [f"{len(record.unjudged)} not judged"] if record.unjudged else []
    counted.append(count(sum(f.severity == "warning" for f in record.findings), "warning"))
    yield ""
    judged = "is not judged" if record.verdict == "not judged" else record.verdict
    yield bold(f"{record.folder} {judged}: {', '.join(counted)}")


def _modules(modules: Sequence[ModuleReport]) -> DataTable:
    """One row for each way of being stored and run, with the modules that share it."""
    alike: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for module in modules:
        kinds = ", ".join(f"{leaf} {of.partition(' ')[0]}" for leaf, of in module.stored.items())
        alike.setdefault((kinds, tuple((run.engine, run.scheme) for run in module.runs)), []).append(module.name)
    rows = ((_names(names), stored or "nothing", _runs(runs)) for (stored, runs), names in alike.items())
    return table(texts("modules", "stored as", "runs"), rows)


def _live(live: LiveRun) -> Parts:
    """What an engine really ran, a row for each way, and its loss beside ours."""
    yield bold(f"run in {live.engine} {live.version}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for module in live.modules:
        alike.setdefault((module.scheme, module.kernel, module.resolved), []).append(module.name)
    rows = ((_names(names), *ran) for ran, names in alike.items())
    yield table(texts("modules", "ran", "kernel", "resolved"), rows)
    for loss in live.losses:
        apart = f"{loss.nats - loss.ours:+.6f} ± {loss.standard_error:.6f}"
        where = f"{count(loss.windows, 'window')}, {loss.predicted:,} tokens"
        yield dim(f"mean loss {loss.nats:.6f}, simulated here {loss.ours:.6f}: {apart} nats per token on {where}")


def _runs(runs: Sequence[tuple[str, str]]) -> str:
    """The scheme that all engines run, or a line for each scheme."""
    engines: dict[str, list[str]] = {}
    for engine, scheme in runs:
        engines.setdefault(scheme, []).append(engine)
    if len(engines) == 1:
        return next(iter(engines))
    return "\n".join(f"{', '.join(names)}: {scheme}" for scheme, names in engines.items())


def _finding(finding: Finding) -> list[Sequence[str]]:
    """What was found, where, and what to do about it."""
    engines = f"in {', '.join(finding.engines)}" if finding.engines else ""
    places = GAP.join(filter(None, (_names(finding.modules), engines)))
    first = (Marked(finding.severity, _STYLES[finding.severity]), finding.what)
    return [first, *([("", places)] if places else []), marked(("", f"→ {finding.remedy}"), "dim")]


def _names(modules: Sequence[str]) -> str:
    """The first modules by their short names, and how many more there are."""
    shown = [short_name(name) if any(p.isdigit() for p in name.split(".")) else name for name in modules[:NAMES]]
    return ", ".join(shown) + (f" and {len(modules) - NAMES} more" if len(modules) > NAMES else "")
