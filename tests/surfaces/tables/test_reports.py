"""The list of reports is whole, imports no more than it needs, and has two renderers that say the same."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from typing import get_args

import pytest

from qarat.surfaces.page.document import part_html
from qarat.surfaces.page.parts import Titled
from qarat.surfaces.tables.data import DataTable, Line, Marked, Quoted, numbers, pairs, respelled, table, texts
from qarat.surfaces.tables.reports import _KINDS, report_of  # pyright: ignore[reportPrivateUsage]
from qarat.values.records.files import Record
from qarat.values.records.origin import Difference, Provenance
from qarat.values.records.prices import Protection, Trial


def test_every_record_has_a_report_and_every_report_a_function() -> None:
    assert {kind.__name__ for kind in get_args(Record)} <= _KINDS.keys()
    for kind in _KINDS.values():
        module = importlib.import_module(f"qarat.surfaces.tables.{kind.module}")
        assert all(callable(getattr(module, name)) for name in (kind.one, kind.several) if name)


def test_laws_scores_and_prices_are_shown_without_torch() -> None:
    modules = ("reports", "laws", "law_data", "scores", "prices", "listings")
    names = ", ".join(f"qarat.surfaces.tables.{name}" for name in modules)
    code = f"import sys, qarat.surfaces.terminal, {names}; print('torch' in sys.modules, 'vl_convert' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_html_says_what_the_terminal_says_and_takes_nothing_as_markup() -> None:
    trial = Trial("nothing <i>\x1b", (), Difference(0.1234, 0.01, 2))
    origin = Provenance("m" * 64, "t" * 64, "windows-8-bos", {})
    (data,) = (
        part
        for part in report_of(Protection(origin, "order", "ppl+1%", 0.01, (trial,), (0.1,), ("a",), "verdict"))
        if isinstance(part, DataTable)
    )
    markup = part_html(Titled("<b>\x1b", data))
    assert "<td>nothing <i>\\x1b</td>".replace("<i>", "&lt;i&gt;") in markup
    assert '<td class="n">0.1234</td>' in markup
    assert '<th scope="col" class="n">loss over float (nats)</th>' in markup
    assert "<h3>&lt;b&gt;\\x1b</h3>" in markup
    assert not re.search(r"<(script|i)>", markup)


def test_a_table_may_lose_what_nothing_stands_in() -> None:
    data = table((*texts("a", "b"), *numbers("c\n(d)")), [("1", "", "2"), (Marked("3", "bold"), "", "")])
    assert data.used().names == ("a", "c (d)")
    assert data.used().details(0) == {"a": "1", "c (d)": "2"}
    assert part_html(Titled("", data.used())).count("<td") == 4
    assert "<b>3</b>" in part_html(Titled("", data))
    assert "<thead>" not in part_html(Titled("", pairs([("x", "y")])))


def test_what_has_no_report_is_named() -> None:
    with pytest.raises(TypeError, match="no report of a int"):
        report_of(3)


def test_words_are_spelled_otherwise_but_not_what_is_quoted() -> None:
    parts = [Line("give `gpu`"), table(texts("so"), [[Marked("`gpu`", "dim")], [Quoted("`gpu`", "dim")]])]
    line, cells = respelled(parts, lambda text: text.replace("`gpu`", "--gpu"))
    assert line == Line("give --gpu")
    assert isinstance(cells, DataTable)
    assert cells.rows == (("--gpu",), ("`gpu`",))
