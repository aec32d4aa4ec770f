"""Advice: the landscape of schemes, where each runs, what was measured, and what to take from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from qarat.surfaces.tables.data import DataTable, Parts, bold, dim, marked, numbers, table, texts, title
from qarat.surfaces.tables.wording import (
    GAP,
    count,
    decimals,
    fixed,
    loss_and_error,
    megabytes,
    perplexity_change,
    share,
)
from qarat.values.records.advice import NOT_KNOWN, Advice, AdvisedScheme, EngineAnswer

_SIMULATING = "transformers"  # computes in float whatever it loads
_FLAGS = {"low": "--low", "budget": "--budget", "transforms": "--transform", "runtime": "--runtime", "menu": "--menu"}


def show_advice(record: Advice) -> Parts:
    """Every scheme with its recipe, where they run, what was left out, what was measured, and the verdict."""
    budget = f"budget {record.budget} ({fixed(record.budget_nats, 4)} nats)"
    yield title("advice", record.provenance.model, budget, *record.engines)
    yield dim(f"{record.provenance.convention}{GAP}predictions from {record.priced:,} tokens of the selection set")
    yield from ("", landscape(record), "")
    yield dim(
        "naive: everything low, nothing done; recipe: rewritten where that can be fitted, then so many sites in float "
        f"that {record.caution:g} times what is predicted is within the budget"
    )
    yield from ("", where_they_run(record), "", dim(versions(record)), *unrun(record), "", commands(record), "")
    if record.measured:
        yield from (measurements(record), "")
        yield dim(
            "measured, on the selection set: of inputs in float, dynamic and static each the smallest recipe (of those "
            "within 5 % of its bytes the one predicted to lose least); whatever else is said is a prediction"
        )
    yield from (bold(verdict(record)), dim(cost(record)))


def landscape(record: Advice) -> DataTable:
    """Every scheme, the smallest recipe first; those that were measured stand out."""
    digits = decimals([n for s in record.schemes for n in (s.naive, s.predicted)])
    losses = numbers("naive\n(nats)", "\n(ppl %)", "recipe\n(nats)", "\n(ppl %)")
    sizes = numbers("float\nsites", "\n(%)", "bits", "MB", "cache (bytes\na token)")
    columns = (*texts("predicted", wrap=False), *losses, *sizes, *texts("kernels in"))
    shown = table(columns, (_row(s, digits, measured=s.name in record.measured) for s in record.schemes))
    return shown.used() if not any(s.is_of_caches for s in record.schemes) else shown


def _row(advised: AdvisedScheme, digits: int, *, measured: bool) -> tuple[str, ...]:
    losses = ((fixed(nats, digits), perplexity_change(nats)) for nats in (advised.naive, advised.predicted))
    kernels = [a.engine for a in advised.engines if a.runs and a.engine != _SIMULATING]
    cells = (
        advised.name,
        *(cell for pair in losses for cell in pair),
        str(len(advised.kept)) if advised.is_low else "all",
        share(advised.share, 1) if advised.kept else "",
        fixed(advised.bits, 2),
        megabytes(8 * advised.size),
        f"{advised.cache:,}" if advised.is_of_caches else "",
        ", ".join(kernels) or "none",
    )
    return marked(cells, "bold" if measured else "")


def where_they_run(record: Advice) -> DataTable:
    """What each engine computes of which schemes, on which hardware; and what nobody knows."""
    alike: dict[EngineAnswer, list[str]] = {}
    for advised in record.schemes:
        for answer in advised.engines:
            alike.setdefault(answer, []).append(advised.name)
    engines: dict[str, list[str]] = {}
    for answer, names in alike.items():
        lines = engines.setdefault(answer.engine, [])
        if answer.runs:
            doubt = f" (not verified: {answer.doubt})" if answer.doubt else ""
            lines.append(f"{answer.runs} ({', '.join(names)}): {answer.where}{doubt}")
        elif answer.where == NOT_KNOWN:
            lines.append(f"{NOT_KNOWN}: {', '.join(names)}")
    rows = ((engine if i == 0 else "", line) for engine, lines in engines.items() for i, line in enumerate(lines))
    return table((*texts("engine", wrap=False), *texts("what it runs, of what, and where")), rows)


def unrun(record: Advice) -> Iterator[str]:
    """A line for every scheme that no engine runs, and for those that were not looked at."""
    for advised in record.schemes:
        if not any(a.runs for a in advised.engines):
            yield f"no engine runs {advised.name}: {advised.engines[0].where}"
    yield from (f"left out: {left.name}: {left.why}" for left in record.left_out)


def versions(record: Advice) -> str:
    """Which versions of the engines is spoken of."""
    answers = (answer for advised in record.schemes for answer in advised.engines)
    return "; ".join(f"{engine}: {of}" for engine, of in {a.engine: a.versions for a in answers}.items())


def commands(record: Advice) -> DataTable:
    """What to type next, for every scheme."""
    lines = (shlex.join(["qarat", verb_of(s), "MODEL", *words_of(s)]) for s in record.schemes)
    return table(texts("to go on", "type", wrap=False), zip((s.name for s in record.schemes), lines, strict=True))


def verb_of(advised: AdvisedScheme) -> str:
    """Which verb does it."""
    return "search" if advised.is_of_caches else "run"


def words_of(advised: AdvisedScheme) -> list[str]:
    """What the verb is told behind the model."""
    return [word for name, value in advised.request.items() for word in (_FLAGS[name], value)]


def measurements(record: Advice) -> DataTable:
    """Predicted and measured side by side."""
    schemes = [s for s in record.schemes if s.name in record.measured]
    digits = decimals([n for s in schemes for n in (s.predicted, record.measured[s.name].nats)])
    heads = ("predicted\n(nats)", "measured\n(nats)", "± SE\n(nats)", "perplexity\n(%)")
    rows = (
        (
            s.name,
            fixed(s.predicted, digits),
            *loss_and_error(lost, digits),
            perplexity_change(lost.nats),
            "yes" if lost.nats <= record.budget_nats else "no",
        )
        for s in schemes
        for lost in [record.measured[s.name]]
    )
    return table((*texts("measured", wrap=False), *numbers(*heads), *texts("within\nbudget", wrap=False)), rows)


def verdict(record: Advice) -> str:
    """What to take from it, in one sentence."""
    if not record.meeting:
        nearest, nats = record.nearest, record.would_take
        return (
            f"Nothing low is predicted to keep {record.budget}. {nearest.name} comes nearest: with no site in float it "
            f"loses {fixed(nearest.low, 4)} nats, which takes a budget of ppl+{_rounded_up(nats)}%"
        )
    kept = [s for s in record.meeting if s.name in record.measured]
    within = [s for s in kept if record.measured[s.name].nats <= record.budget_nats]
    if within:
        smallest = within[0]
        lost = perplexity_change(record.measured[smallest.name].nats)
        return f"{_size(smallest)}, is the smallest that was measured within {record.budget}: perplexity {lost} %"
    if kept:
        best = min(kept, key=lambda s: record.measured[s.name].nats)
        lost = perplexity_change(record.measured[best.name].nats)
        return (
            f"None that was measured is within {record.budget}; {_size(best)}, comes nearest with {lost} %. `qarat "
            "run` measures, and keeps more in float until it is"
        )
    return f"{_size(record.meeting[0])}, is the smallest predicted to keep {record.budget}; nothing was measured"


def _size(advised: AdvisedScheme) -> str:
    if advised.is_of_caches:
        return f"{advised.name}, {advised.cache:,} bytes of cache a token"
    return f"{advised.name}, {megabytes(8 * advised.size)} MB"


def _rounded_up(nats: float) -> str:
    return f"{math.ceil(1e4 * math.expm1(nats)) / 100:g}"


def cost(record: Advice) -> str:
    """What it cost to find out."""
    among = f", {count(len(record.measured), 'measured recipe')} among them"
    return f"it took {fixed(record.forwards, 1)} forwards of the selection set{among if record.measured else ''}"
