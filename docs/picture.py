"""Draw a finished run as the picture of the README: `python docs/picture.py demo-out docs/demo.svg`."""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from qarat.jobs.run_steps import show_run
from qarat.surfaces.terminal import render
from qarat.values.schemes import LOW

WIDTH = 100


def draw(folder: Path, out: Path) -> None:
    """Print the run into a recording console and save what it shows."""
    console = Console(record=True, width=WIDTH, file=Path("/dev/null").open("w"), force_terminal=True)  # noqa: SIM115

    def show(*records: object, title: str = "", **context: object) -> None:
        if title:
            console.print(f"\n[bold]{title}[/bold]")
        console.print(render(*records, **context))

    show_run(folder, show, LOW)
    svg = console.export_svg(title=f"qarat run -o {folder.name}", theme=MONOKAI)
    # rich names a web font; the picture must not fetch anything.
    out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
