"""One word a thing: no two public classes of the source share a name."""

import ast
from collections import defaultdict
from pathlib import Path

import qarat


def test_no_two_classes_share_a_name() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    root = Path(qarat.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(root)))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}
