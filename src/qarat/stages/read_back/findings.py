"""Findings gathered: the same thing said of many modules or engines is said once."""

from __future__ import annotations

from collections.abc import Iterable

from qarat.values.records.verification import Finding, Severity

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


class Findings:
    """What was found so far, by what it says."""

    def __init__(self) -> None:
        self._found: dict[tuple[Severity, str, str], tuple[dict[str, None], dict[str, None]]] = {}
        self._blocking: list[tuple[str, ...]] = []

    def add(
        self,
        severity: Severity,
        what: str,
        remedy: str,
        modules: Iterable[str] = (),
        engines: Iterable[str] = (),
        *,
        blocks: bool = True,
    ) -> None:
        """Note something of some modules and engines; what was said already is widened to them.

        Args:
            severity: How grave it is.
            what: What is wrong, with numbers.
            remedy: What to do about it.
            modules: By full name.
            engines: By name; none for all.
            blocks: Of an error: whether those engines' model cannot be computed here either.
        """
        engines = tuple(engines)
        if severity == "error" and blocks:
            self._blocking.append(engines)
        known_modules, known_engines = self._found.setdefault((severity, what, remedy), ({}, {}))
        known_modules.update(dict.fromkeys(modules))
        known_engines.update(dict.fromkeys(engines))

    def listed(self) -> tuple[Finding, ...]:
        """Everything found, the gravest first, otherwise in the order it was found."""
        ranked = sorted(self._found.items(), key=lambda item: _ORDER[item[0][0]])
        return tuple(Finding(*said, tuple(modules), tuple(engines)) for said, (modules, engines) in ranked)

    def block(self, engine: str) -> bool:
        """Whether anything found so far keeps the model that an engine would run from being computed here."""
        return any(not engines or engine in engines for engines in self._blocking)
