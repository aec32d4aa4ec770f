"""Divergence from float as tables: in all, by position, and the worst tokens."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.text import Text

from qarat.surfaces.tables.layout import (
    cells,
    count,
    decimals,
    fixed,
    label,
    number,
    share,
    table,
    title,
    visible,
    words,
)
from qarat.values.records.scores import Divergence

SHOWN = 40  # characters of context


def show_divergence(record: Divergence) -> RenderableType:
    """One model's divergence from float."""
    mean, error = record.mean
    agreement, agreement_error = record.agreement
    digits = decimals([mean])
    facts = (
        f"KL from float {fixed(mean, digits)} ± {fixed(error, digits)} nats per token",
        f"99 % of tokens below {fixed(record.percentile_99, 3)}",
    )
    same = f"same likeliest token on {share(agreement, 1, 2)} % ± {share(agreement_error, 1, 2)} % of tokens"
    return Group(
        title(record.label, record.provenance.model, *facts),
        words(same),
        words(_tokens(record), "dim"),
        Text(),
        _by_position(record),
        Text(),
        _worst(record),
    )


def _by_position(record: Divergence) -> RenderableType:
    digits = decimals([b.divergence for b in record.positions])
    out = table(number("tokens read"), number("predicted"), number("KL\n(nats)"), number("same\n(%)"))
    for b in record.positions:
        span = f"{b.first:,}" if b.first == b.last else f"{b.first:,} to {b.last:,}"
        cells(out, span, f"{b.tokens:,}", fixed(b.divergence, digits), share(b.agreement, 1))
    return out


def _worst(record: Divergence) -> RenderableType:
    out = table(
        number("KL\n(nats)"), label("behind"), label("came"), label("float's choice"), label(f"{record.label}'s choice")
    )
    for token in record.worst:
        context = Text(f"…{visible(_line(token.context)[-SHOWN:])}", "dim")
        choices = (
            f"{_line(choice)} ({share(probability, 1, 0)} %)"
            for choice, probability in (
                (token.float_choice, token.float_probability),
                (token.choice, token.probability),
            )
        )
        cells(out, fixed(token.divergence, 2), context, _line(token.token), *choices)
    return out


def _line(text: str) -> str:
    """A text on one line in which white space is seen: ``⏎␣8`` is a newline and eight spaces."""
    marked = text.replace("\n", "⏎").replace("\t", "⇥")
    return re.sub(" {2,}", lambda run: f"␣{len(run[0])} ", marked)


def _tokens(record: Divergence) -> str:
    sources = count(len(set(record.sources)), "source")
    windows = count(len(record.nats), "window")
    return f"{windows} of {sources}, {sum(record.predicted):,} predicted tokens, {record.provenance.convention}"
