"""Code lines of `src` by layer: what is left without blanks, comments and docstrings.

python benchmarks/code_lines.py [FOLDER]
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path
from statistics import median

NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that hold code; a string that stands alone as a statement is documentation."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in NOT_CODE for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def long_functions(source: str, most: int = 40) -> list[str]:
    """Functions of more code lines than ``most``, with their number."""
    code = code_lines(source)
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = {f.name: len(code & set(range(f.lineno, (f.end_lineno or f.lineno) + 1))) for f in functions}
    return [f"{name} {size}" for name, size in sizes.items() if size > most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "src" / "qarat")
    folder: Path = parser.parse_args().folder
    layers: Counter[str] = Counter()
    modules: dict[str, int] = {}
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        place = path.relative_to(folder)
        layers[place.parts[0]] += len(code_lines(source))
        modules[str(place)] = len(source.splitlines())
        for function in long_functions(source):
            print(f"over 40 lines: {place} {function}")
    for layer, lines in layers.most_common():
        print(f"{lines:6}  {layer}")
    largest = max(modules, key=modules.__getitem__)
    print(f"{layers.total():6}  together, in {len(modules)} modules")
    print(f"lines of a module: median {median(modules.values()):g}, largest {modules[largest]} ({largest})")


if __name__ == "__main__":
    main()
