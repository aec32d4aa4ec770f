"""What a value says of itself: a line at a prompt, a small table in a notebook.

The generated ``repr`` of a plan or of stats is thousands of lines long, and in a notebook it is shown whenever a cell
ends with one. What a value says instead is short and computed from the value itself; the tables of a record are shown
by the command line and the page.
"""

from __future__ import annotations

from html import escape


class Summarized:
    """A mixin: whoever says its facts by `facts` gets ``repr`` and ``_repr_html_``."""

    __slots__ = ()

    def facts(self) -> dict[str, str]:
        """Name to value of the few things that tell this value from another, in the order they are shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}: {value}' for name, value in self.facts().items())})"

    def _repr_html_(self) -> str:
        """As a notebook shows it: a table of the facts."""
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.facts().items())
        return f"<table><caption>{type(self).__name__}</caption>{''.join(rows)}</table>"
