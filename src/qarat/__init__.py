"""qarat: find where a LLaMA-family model needs precision, keep it there, quantize the rest, and prove what it cost.

The same steps as the command line, as functions of values::

    model = qarat.open_model("meta-llama/Llama-2-7b-hf")
    calibration, selection, report = qarat.load_token_sets(model, calibration="text.jsonl")
    stats = qarat.observe(model, calibration)
    request = qarat.Request(budget="ppl+1%")
    menu = qarat.price(model, selection, [qarat.parse_scheme(request.low)], stats)
    plan, sweep = qarat.find_plan(model, request, stats, menu, selection)
    small = qarat.quantize(model, plan, stats)
    print(qarat.measure_perplexity(small, report, label="plan").perplexity)
    qarat.write_native(small, plan, Path("quantized"))
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Name to module; imported when first asked for, so that `import qarat` stays quick.
_HOMES = {
    "Plan": "plans",
    "Request": "planning",
    "Runtime": "workspace",
    "SearchRequest": "searching",
    "TokenSet": "data",
    "UserError": "errors",
    "assign": "plans",
    "decode_record": "recordfiles",
    "diagnose": "spikes",
    "encode_record": "recordfiles",
    "find_plan": "planning",
    "find_spikes": "spikes",
    "fit_law": "laws.fitting",
    "learn_table": "algorithms.kmeans",
    "load_table": "laws.tables",
    "load_token_sets": "data",
    "make_token_set": "data",
    "measure_perplexity": "evaluation.perplexity",
    "observe": "observation",
    "open_model": "models",
    "paired_difference": "records",
    "parse_scheme": "schemes",
    "predict": "laws.prediction",
    "price": "damage.fisher",
    "quantize": "conversion",
    "read_native": "exporters.native",
    "search_plans": "searching",
    "write_native": "exporters.native",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll] (one list of names is enough)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"qarat.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qarat' has no attribute {name!r}")
