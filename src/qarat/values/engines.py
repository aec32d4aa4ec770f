"""Engine rules as data: how each engine assigns the groups of a compressed-tensors folder, and which kernels it has.

Every row names its version and where it was read. Three things differ between engines, and each has broken somebody's
checkpoint: in which order targets are tried, whether a fused module (q, k and v as one) is looked up under its own name
or under its parts', and whether a group's format counts or only the one at the top. What could not be read in a source
says so in ``unverified``.

ONNX Runtime and llama.cpp take a file of their own, in which every tensor says what it is, so that nothing is looked
up; of them there is only what their arithmetic does to a plan (`FILE_ENGINES`).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.schemes import Granularity, LinearScheme, TensorScheme

Step = Literal["name", "fused", "class"]


class Fusion(msgspec.Struct, frozen=True):
    """Projections that an engine merges into one module, which has one scheme and one input scale.

    Attributes:
        name: Of the merged module.
        parts: Last names of the projections, in the order they are merged.
        class_name: Of the merged module, against which class targets are matched.
    """

    name: str
    parts: tuple[str, ...]
    class_name: str


# vllm/model_executor/models/llama.py, `packed_modules_mapping` of LlamaForCausalLM; mistral, qwen2 and qwen3 the same.
FUSIONS = (
    Fusion("qkv_proj", ("q_proj", "k_proj", "v_proj"), "QKVParallelLinear"),
    Fusion("gate_up_proj", ("gate_proj", "up_proj"), "MergedColumnParallelLinear"),
)
_CLASSES = {"lm_head": "ParallelLMHead"}  # everything else: RowParallelLinear


def fusion_of(leaf: str) -> Fusion | None:
    """The fusion that a projection goes into, by the last part of its name."""
    return next((fusion for fusion in FUSIONS if leaf in fusion.parts), None)


def class_name(leaf: str) -> str:
    """The class of a module that vLLM and SGLang do not fuse, by the last part of its name."""
    return _CLASSES.get(leaf, "RowParallelLinear")


class Engine(msgspec.Struct, frozen=True):
    """How one engine, in some versions, finds the group of a module.

    Attributes:
        name: As it is asked for.
        versions: Which versions the row is about.
        current: Whether it is about today's version; what breaks in an older one alone is a warning.
        steps: In which order a module is looked up: by its name, by the names of its parts, by its class.
        by_text: Whether targets are tried exact names first, then patterns in the order of their text; otherwise as
            the config lists them.
        ignores: How an entry of ``ignore`` is compared with a name: ``exact`` (or a ``re:`` pattern), ``class`` (that
            or the name of its class), ``contains`` (or any part of the name).
        fuses: Whether `FUSIONS` are merged.
        group_format: Whether a group's own ``format`` counts; otherwise the one at the top decides for all.
        unmatched: What becomes of a module that no target matches: left in ``float`` without a word, or ``refused``.
        sources: Where this was read.
        unverified: What of it was not.
        all_kernels: Whether its choice of kernels was read whole, so that what is not in `KERNELS` is refused.
    """

    name: str
    versions: str
    current: bool
    steps: tuple[Step, ...]
    by_text: bool
    ignores: Literal["exact", "class", "contains"]
    fuses: bool
    group_format: bool
    unmatched: Literal["float", "refused"]
    sources: tuple[str, ...]
    unverified: str = ""
    all_kernels: bool = True


_VLLM_FILES = "vllm/model_executor/layers/quantization/compressed_tensors"
_SGLANG_FILES = "python/sglang/srt/layers/quantization/compressed_tensors"

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "transformers",
            "5.17 with compressed-tensors 0.20.0",
            current=True,
            steps=("name", "class"),
            by_text=True,
            ignores="class",
            fuses=False,
            group_format=True,
            unmatched="float",
            sources=(
                "compressed-tensors 0.20.0: utils/match.py (match_targets, is_match), "
                "quantization/lifecycle/apply.py (apply_quantization_config takes the first match)",
                "transformers 5.17: quantizers/quantizer_compressed_tensors.py",
                "https://github.com/vllm-project/compressed-tensors/issues/847 (patterns ordered as text)",
            ),
        ),
        Engine(
            "vllm",
            "0.27 and later",
            current=True,
            steps=("name", "fused", "class"),
            by_text=False,
            ignores="exact",
            fuses=True,
            group_format=True,
            unmatched="float",
            sources=(
                "https://github.com/vllm-project/vllm/pull/49483 (merged 2026-07-27: fused name before class)",
                f"{_VLLM_FILES}/compressed_tensors.py at e9476487 and utils.py at 008014e8",
            ),
            unverified="that 0.27 is the first release with pull request 49483 (0.26.0 is older than its merge)",
        ),
        Engine(
            "vllm-0.26",
            "0.11 to 0.26",
            current=False,
            steps=("name", "class", "fused"),
            by_text=False,
            ignores="exact",
            fuses=True,
            group_format=True,
            unmatched="float",
            sources=(
                f"{_VLLM_FILES}/utils.py at 008014e8",
                "https://github.com/vllm-project/llm-compressor/issues/2730 (class target before fused name)",
                "https://github.com/vllm-project/vllm/pull/22468 (merged 2025: a group's own format counts)",
            ),
            unverified="the first version of the range",
        ),
        Engine(
            "sglang",
            "from 2026-07-29 on",
            current=True,
            steps=("name", "class", "fused"),
            by_text=False,
            ignores="exact",
            fuses=True,
            group_format=True,
            unmatched="refused",
            sources=(
                "https://github.com/sgl-project/sglang/pull/32736 (merged 2026-07-29: ignore exact, group's format)",
                f"{_SGLANG_FILES}/utils.py at 06b5b190 (order of the steps)",
            ),
            unverified="the release that pull request 32736 is in, and the order of the steps after it",
            all_kernels=False,
        ),
        Engine(
            "sglang-old",
            "before 2026-07-29",
            current=False,
            steps=("name", "class", "fused"),
            by_text=False,
            ignores="contains",
            fuses=True,
            group_format=False,
            unmatched="refused",
            sources=(
                f"{_SGLANG_FILES}/compressed_tensors.py at 000659ae and utils.py at 06b5b190",
                "https://github.com/sgl-project/sglang/pull/32736 (mixed precision loaded unquantized, silently)",
            ),
            all_kernels=False,
        ),
    )
}
DEFAULT_ENGINES = tuple(ENGINES)

# NVIDIA's compute capability of each generation, and the CPU.
GENERATIONS: dict[str, float] = {
    "turing": 7.5,
    "ampere": 8.0,
    "ada": 8.9,
    "hopper": 9.0,
    "blackwell": 10.0,
    "blackwell-rtx": 12.0,
}
CPU = "cpu"


class EngineKernel(msgspec.Struct, frozen=True):
    """Where an engine can compute one kind of scheme.

    Attributes:
        engine: Family of engines: the name up to a hyphen.
        kind: As `kernel_kind` says.
        least: Compute capability from which it runs; infinite for Arm CPUs alone.
        below: Compute capability from which it no longer does.
        fallback: What runs on GPUs from 7.5 to ``least`` instead; empty if nothing does.
        cpu: Whether it runs on x86 CPUs.
        source: Where this was read.
        unverified: What of it was not.
    """

    engine: str
    kind: str
    least: float
    below: float = math.inf
    fallback: str = ""
    cpu: bool = False
    source: str = ""
    unverified: str = ""

    @property
    def reach(self) -> str:
        """Where it runs, in words."""
        if math.isinf(self.least):
            return "Arm CPUs"
        limit = " on" if math.isinf(self.below) else f" to below {self.below:g}"
        return f"GPUs of compute capability {self.least:g}{limit}" + ("; x86 CPUs too" if self.cpu else "")

    def on(self, generation: str) -> str:
        """What runs there: the kind, its fallback, or nothing (empty)."""
        if generation == CPU:
            return self.kind if self.cpu else ""
        capability = GENERATIONS[generation]
        if self.least <= capability < self.below:
            return self.kind
        return self.fallback if capability < self.least else ""


_INT8_PAGE = "https://docs.vllm.ai/en/latest/features/quantization/int8/"
_FP8_PAGE = "https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/"
_TABLE = "https://docs.vllm.ai/en/v0.14.0/features/quantization/ (table of hardware)"
_CHOICE = "https://docs.vllm.ai/projects/llm-compressor/en/0.11.0/steps/choosing-scheme/"
_WEIGHT_ONLY = "weights alone in low precision"
_MARLIN = "the weight-only kernel for GPUs below 10.0"

KERNELS = (
    EngineKernel(
        "vllm", "int8", 7.5, 10.0, cpu=True, source=f"{_INT8_PAGE}; {_TABLE}; schemes/compressed_tensors_w8a8_int8"
    ),
    EngineKernel("vllm", "fp8", 8.9, fallback=_WEIGHT_ONLY, source=f"{_FP8_PAGE}; {_TABLE}"),
    EngineKernel("vllm", "fp8 weights", 7.5, source=f"{_FP8_PAGE}; schemes/compressed_tensors_w8a16_fp8 at 02e43002"),
    EngineKernel("vllm", "packed int", 7.5, cpu=True, source=_CHOICE, unverified="the CPU, for this format"),
    EngineKernel("vllm", "int4 weights, int8 inputs", math.inf, source=f"{_CHOICE} (Arm CPUs only)"),
    EngineKernel("vllm", "int4 weights, fp8 inputs", 9.0, 10.0, source=f"{_VLLM_FILES} at e9476487: _is_fp8_w4a8_sm90"),
    EngineKernel(
        "vllm", "nvfp4", 10.0, fallback=_WEIGHT_ONLY, source=f"{_CHOICE}; llm-compressor, quantization_w4a4_fp4"
    ),
    EngineKernel("vllm", "nvfp4 weights", 7.5, source="schemes/quant_spec_scheme.py at e9476487", unverified=_MARLIN),
    EngineKernel("vllm", "mxfp4", 10.0, fallback=_WEIGHT_ONLY, source=_CHOICE, unverified=_MARLIN),
    EngineKernel("vllm", "mxfp4 weights", 7.5, source=f"{_VLLM_FILES} at e9476487: _is_mxfp4", unverified=_MARLIN),
    EngineKernel(
        "vllm",
        "mxfp8",
        10.0,
        fallback=_WEIGHT_ONLY,
        source=f"{_CHOICE}; schemes/compressed_tensors_w8a8_mxfp8 at 109f2f21 (capability 7.5)",
        unverified=_MARLIN,
    ),
    EngineKernel("sglang", "int8", 7.5, source=f"{_SGLANG_FILES} at 000659ae", unverified="GPUs from 10.0 on"),
    EngineKernel("sglang", "fp8", 8.9, fallback=_WEIGHT_ONLY, source=f"{_SGLANG_FILES} at 000659ae"),
    EngineKernel("sglang", "fp8 weights", 7.5, source=f"{_SGLANG_FILES} at 000659ae", unverified="the capability"),
    EngineKernel("sglang", "packed int", 7.5, source=f"{_SGLANG_FILES} at 000659ae", unverified="the capability"),
    EngineKernel("sglang", "nvfp4", 10.0, source=f"{_SGLANG_FILES}/schemes", unverified="older GPUs"),
    EngineKernel("sglang", "nvfp4 weights", 7.5, source=f"{_SGLANG_FILES}/schemes", unverified="the capability"),
    EngineKernel("sglang", "mxfp4 weights", 7.5, source=f"{_SGLANG_FILES}/schemes", unverified="the capability"),
    EngineKernel(
        "sglang", "mxfp8", 10.0, source=f"{_SGLANG_FILES}/schemes/compressed_tensors_w8a8_mxfp8.py at 719a8369"
    ),
)
"""transformers is not here: it computes what it loads in float and simulates the inputs, on any machine."""


class FileEngine(msgspec.Struct, frozen=True):
    """An engine that takes a file of its own instead of a compressed-tensors folder: how it computes what is in it.

    Attributes:
        name: Of the engine.
        versions: Which versions the row is about.
        holds: What its kernels take, in words.
        notes: Where its arithmetic differs from the plan's, a line each; exports repeat them.
        sources: Where this was read.
        unverified: What of it was not.
    """

    name: str
    versions: str
    holds: str
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    unverified: str = ""


FILE_ENGINES: dict[str, FileEngine] = {
    engine.name: engine
    for engine in (
        FileEngine(
            "onnxruntime",
            "1.31, CPU",
            holds="int8 weights per tensor or channel; uint8 inputs under one static scale per tensor",
            notes=(
                "on x86 CPUs without VNNI, ONNX Runtime adds uint8 × int8 products by twos in 16 bits, which saturate: "
                "check logits there, or use a CPU with VNNI or an Arm CPU",
            ),
            sources=(
                "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (when to try U8U8)",
                "onnxruntime/core/mlas/lib/platform.cpp: MlasGemmU8S8KernelAvx2, …Avx512Core, …Avx512Vnni by CPU",
                "tests/engines/test_onnx.py (which inputs are fused, with 1.31.1)",
            ),
            unverified="the saturation itself, for want of a CPU without VNNI",
        ),
        FileEngine(
            "llama.cpp",
            "that of llama-cpp-python 0.3.36, CPU",
            holds="weights in blocks of 32 along a row, K-quants in superblocks of 256; float32, float16, bfloat16",
            notes=(
                "llama.cpp rounds inputs itself: to 8 bits in blocks of 32 (of 256 before K-quants), "
                "and before float16 and bfloat16 weights to their dtype",
            ),
            sources=("ggml/src/ggml-cpu/ggml-cpu.c at 005913fd: vec_dot_type of type_traits_cpu",),
            unverified="GPUs, whose kernels choose for themselves",
        ),
    )
}


def engine_named(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UserError: If there is none; names the nearest.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}; {nearest_names(name, list(ENGINES))}")
    return ENGINES[name]


def generation_named(name: str) -> str:
    """The name itself, if it is that of a GPU generation, or ``cpu``.

    Raises:
        UserError: If it is not; names the nearest.
    """
    known = [*GENERATIONS, CPU]
    if name not in known:
        raise UserError(f"unknown GPU generation {name!r}; {nearest_names(name, known)}")
    return name


def kernel_for(engine: Engine, kind: str) -> EngineKernel | None:
    """The row of an engine for a kind of scheme; None if it has no kernel for it."""
    family = engine.name.partition("-")[0]
    return next((k for k in KERNELS if k.engine == family and k.kind == kind), None)


def kernel_kind(scheme: LinearScheme, format: str) -> str:
    """The kind of kernel that vLLM and SGLang look for, from scheme and format on disk; empty if they know none.

    Read from vLLM's `CompressedTensorsConfig._get_scheme_from_parts` at e9476487.
    """
    weight, input = scheme.weight, scheme.input
    if weight is None:
        return ""
    if weight.format == "e2m1":
        return _fp4_kind(weight, input)
    if weight.scale == "e8m0":
        return "mxfp8" if weight.format == "e4m3" and weight.granularity == Granularity(1, 32) else ""
    if weight.format == "e4m3":
        return _fp8_kind(weight, input) if format in ("float-quantized", "naive-quantized") else ""
    if weight.format in ("int4", "int8") and not _is_tiled(weight) and input is None:
        return "packed int" if format == "pack-quantized" and weight.granularity.rows == 1 else ""
    if not weight.symmetric or input is None:
        return ""
    if weight.format == "int8" and input.format == "int8" and _by_rows(weight):
        known = format in ("int-quantized", "naive-quantized") and (_is_token(input) or _is_static_tensor(input))
        return "int8" if known else ""
    if weight.format == "int4" and weight.granularity.rows == 1 and _is_token(input):
        return {"int8": "int4 weights, int8 inputs", "e4m3": "int4 weights, fp8 inputs"}.get(input.format, "")
    return ""


def _fp4_kind(weight: TensorScheme, input: TensorScheme | None) -> str:
    name = {("e4m3", 16): "nvfp4", ("e8m0", 32): "mxfp4"}.get((weight.scale, weight.granularity.cols or 0), "")
    if not name or input is None:
        return f"{name} weights" if name else ""
    return name if name == "mxfp4" or input.format == "e2m1" else ""


def _fp8_kind(weight: TensorScheme, input: TensorScheme | None) -> str:
    if not (_by_rows(weight) or _is_tiled(weight)):
        return ""
    if input is None:
        return "fp8 weights"
    fits = input.format == "e4m3" and (not input.static or _is_static_tensor(input))
    return "fp8" if fits and not (input.static and _is_tiled(weight)) else "fp8 weights"


def _by_rows(weight: TensorScheme) -> bool:
    return weight.granularity in (Granularity(), Granularity(1, None))


def _is_tiled(weight: TensorScheme) -> bool:
    return weight.granularity.rows not in (None, 1)


def _is_token(input: TensorScheme) -> bool:
    return not input.static and input.granularity == Granularity(1, None)


def _is_static_tensor(input: TensorScheme) -> bool:
    return input.static and input.granularity == Granularity()
