"""One side of `oneshot.py`, in a process of its own: a model folder and token ids in, a quantized folder out.

Each side imports only what it needs, before the clock starts; the clock stops when the folder is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Work = Callable[[], None]


def qarat(chosen: argparse.Namespace) -> Work:
    """Profile where scales are static, assign, quantize and export, with nothing written in between."""
    import compressed_tensors  # noqa: F401  (the exporter imports it when it is first named)
    import transformers.models.llama.modeling_llama  # noqa: F401  (likewise transformers)

    import qarat.stages.export.compressed_tensors  # noqa: F401
    from qarat.ground.runtime import Runtime
    from qarat.model.opening import open_model
    from qarat.model.tokens import TokenSet
    from qarat.stages.export.base import export_model
    from qarat.stages.observe import observe
    from qarat.stages.quantize import quantize
    from qarat.stages.rounding import needs_calibration
    from qarat.values.parsing import parse_scheme
    from qarat.values.plans import assign
    from qarat.values.schemes import is_static

    low = parse_scheme(chosen.low)
    rules = [tuple(rule) for rule in json.loads(chosen.rules)]

    def work() -> None:
        ids = load_file(chosen.tokens)["ids"]
        length = ids.shape[1]
        tokens = TokenSet("calibration", f"windows-{length}-bos", ids, ("random",) * len(ids), ("0" * 64,), ("random",))
        # A window at a time, as llm-compressor's batch size is 1.
        runtime = Runtime(dtype=chosen.dtype, threads=chosen.threads, memory=chosen.memory << 20, batch_tokens=length)
        began = time.perf_counter()
        model = open_model(str(chosen.model), runtime)
        opened = time.perf_counter()
        stats = observe(model, tokens, attention=False, sampled_windows=1) if is_static(low) else None
        observed = time.perf_counter()
        plan = assign(model.fingerprint, model.source_bits, model.sites(), chosen.low, rules)
        calibration = tokens if needs_calibration([low]) else None
        export_model(quantize(model, plan, stats, calibration), plan, chosen.out, "compressed-tensors")
        done = time.perf_counter()
        chosen.steps = {"open": opened - began, "observe": observed - opened, "quantize, export": done - observed}

    return work


def llmcompressor(chosen: argparse.Namespace) -> Work:
    """`oneshot` as its documentation has it: pipeline and batch size left at their defaults."""
    import transformers.models.llama.modeling_llama  # noqa: F401
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not torch.accelerator.is_available():  # 0.14.0's AWQ pins what it keeps, for which torch wants an accelerator
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]

    def work() -> None:
        ids = load_file(chosen.tokens)["ids"].tolist()
        began = time.perf_counter()
        model: Any = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=getattr(torch, chosen.dtype))
        opened = time.perf_counter()
        oneshot(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(chosen.model),
            dataset=Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]),
            recipe=chosen.recipe,
            num_calibration_samples=len(ids),
            max_seq_length=len(ids[0]),
            shuffle_calibration_samples=False,
            output_dir=str(chosen.out),
        )
        chosen.steps = {"open": opened - began, "oneshot": time.perf_counter() - opened}

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["qarat", "llmcompressor"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--low", required=True)
    parser.add_argument("--rules", required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    work = {"qarat": qarat, "llmcompressor": llmcompressor}[chosen.side](chosen)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    chosen.result.write_text(json.dumps({"wall": wall, "cpu": cpu, "steps": chosen.steps}))


if __name__ == "__main__":
    main()
