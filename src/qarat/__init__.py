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
    "Plan": "values.plans",
    "Request": "values.requests.protect",
    "Runtime": "ground.runtime",
    "SearchRequest": "values.requests.search",
    "TokenSet": "model.tokens",
    "UserError": "ground.errors",
    "assign": "values.plans",
    "decode_record": "values.records.files",
    "diagnose": "stages.spikes",
    "encode_record": "values.records.files",
    "find_plan": "jobs.protecting",
    "find_spikes": "stages.spikes",
    "fit_law": "stages.laws.fitting",
    "learn_table": "stages.learned_tables",
    "load_table": "stages.laws.tables",
    "load_token_sets": "model.tokens",
    "make_token_set": "model.tokens",
    "measure_perplexity": "stages.measure.perplexity",
    "observe": "stages.observe",
    "open_model": "model.model",
    "paired_difference": "values.records.scores",
    "parse_scheme": "values.schemes",
    "predict": "stages.laws.prediction",
    "price": "stages.prices.fisher",
    "quantize": "stages.quantize",
    "read_native": "model.native",
    "search_plans": "jobs.search.job",
    "write_native": "model.native",
}

__all__ = [*_HOMES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll] (one list of names is enough)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"qarat.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qarat' has no attribute {name!r}")
