"""Arguments by their names in messages, flags on the command line alone."""

import ast
import re
from pathlib import Path

import pytest

import qarat
from qarat.surfaces import options
from qarat.surfaces.options.arguments import leaves
from qarat.surfaces.words import spell

SOURCES = sorted(Path(qarat.__file__).parent.rglob("*.py"))


def test_no_layer_below_knows_flags() -> None:
    flags = {f"--{leaf.flag}" for verb in options.VERBS.values() for leaf in leaves(verb)}
    found = []
    for path in SOURCES:
        below = "surfaces" not in path.parts and path.name != "verdicts.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if below else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used = {*re.findall(r"(?<!\w)--[a-z][a-z-]*", node.value)} & flags
                found += [f"{path}:{node.lineno}: {', '.join(used)}"] if used else []
    assert found == []


@pytest.mark.parametrize(
    ("verb", "message", "spelled"),
    [
        ("run", "`prefix` 5: give less", "--prefix 5: give less"),
        ("run", "`rules` 'a: b' and `transforms`", "--set 'a: b' and --transform"),
        ("search", "give `budgets` or `price_windows`", "give --budget or --price-windows"),
        ("sweep", "`budgets` x", "--budgets x"),
        ("study spikes", "`orders`: unknown", "--rules: unknown"),
        ("export", "plan without `prefix`, or run `qarat plan` on `text`", None),
    ],
)
def test_the_command_line_spells_arguments_as_flags(verb: str, message: str, spelled: str | None) -> None:
    whole = spelled or "plan without --prefix, or run `qarat plan` on `text`"
    assert spell(message, [*verb.split(), "--json"]) == whole
