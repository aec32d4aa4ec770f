"""qarat: find where a LLaMA-family model needs precision, keep it there, quantize the rest, and prove what it cost.

Whole verbs, as on the command line::

    model = qarat.open_model("meta-llama/Llama-2-7b-hf")
    tokens = calibration, selection, report = qarat.load_token_sets(model, calibration="text.jsonl")
    folder = qarat.run(model, tokens, qarat.ProtectRequest(budget="ppl+1%"), Path("run"))
    qarat.export(folder, None, Path("quantized"), "compressed-tensors")

The same in steps, which are functions of values::

    request = qarat.ProtectRequest(budget="ppl+1%")
    stats = qarat.observe(model, calibration)
    menu = qarat.price(model, selection, [qarat.parse_scheme(request.low)], stats)
    plan, protection = qarat.find_plan(model, selection, request, stats, menu)
    small = qarat.quantize(model, plan, stats)
    print(qarat.measure_perplexity(small, report, label="plan").perplexity)
    qarat.write_native(small, plan, Path("quantized"))

The names are listed once, in the stub beside this file (``__init__.pyi``): editors and type checkers read it as it is,
and each name is imported from where the stub says when it is first asked for, so that ``import qarat`` stays quick.
"""

import ast
import importlib
from pathlib import Path

__version__ = "0.2.0"


def _read_stub() -> dict[str, str]:
    """Every public name to the module that it comes from."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


_HOMES = _read_stub()
__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll] (the stub says it to pyright)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'qarat' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
