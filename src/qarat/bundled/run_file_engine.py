"""Runs an ONNX or GGUF file in an engine, as `run_engine` beside it runs a folder, with the same requests and answers.

REQUEST has besides: the names of the projections that are asked about, ``projections``, and ``tensors``, what the file
calls their weights.
"""

import ctypes
import glob
import importlib
import json
import os
import sys
from typing import Any

from run_engine import (  # pyright: ignore[reportMissingImports]  # this script's folder is the first on the path
    end_with_parent,
    main,
)

THREADS = int(os.environ.get("OMP_NUM_THREADS", "0"))  # none of these engines asks for it itself; 0 is their own choice
# What ONNX Runtime's products are called, and OpenVINO's numbers; what is in neither is said as it is.
WORDS = {"MatMulIntegerToFloat": "int8", "MatMulNBits": "int8 weights", "MatMul": "float", "Gemm": "float"}
NUMBERS = {"u8": "int8", "i8": "int8 weights", "f32": "float"}


def run_onnxruntime(request: Any) -> Any:
    """Kernels are those of its profile, by the names of the nodes."""
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.enable_profiling = True  # into this process's own folder
    options.add_session_config_entry(
        "session.qdq_matmulnbits_accuracy_level", "1"
    )  # inputs of weights alone in float32
    session = ort.InferenceSession(f"{request['folder']}/model.onnx", options, providers=["CPUExecutionProvider"])
    shapes = {given.name: given.shape for given in session.get_inputs()}
    losses = [loss_of(session.run(["logits"], fed(shapes, ids))[0][0], ids) for ids in request["windows"]]
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = [event for event in json.load(file) if event.get("cat") == "Node"]
    kinds = {event["name"].removesuffix("_kernel_time"): event["args"].get("op_name") for event in events}
    return {
        "modules": listed(request, kinds, {name: WORDS.get(kind, kind) for name, kind in kinds.items()}),
        "losses": losses,
    }


def run_openvino(request: Any) -> Any:
    """Kernels are those of the graph as it was executed."""
    ov = importlib.import_module("openvino")
    options = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}  # inputs of weights alone in float32, on CPUs with VNNI too
    if THREADS:
        options["INFERENCE_NUM_THREADS"] = THREADS
    model = ov.Core().compile_model(f"{request['folder']}/model.onnx", "CPU", options)
    shapes = {given.get_any_name(): [size.to_string() for size in given.get_partial_shape()] for given in model.inputs}
    losses = [loss_of(model(fed(shapes, ids))["logits"][0], ids) for ids in request["windows"]]
    kinds, numbers = {}, {}
    for node in model.get_runtime_model().get_ops():
        told = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        kinds[node.get_friendly_name()] = told["primitiveType"]
        numbers[node.get_friendly_name()] = NUMBERS.get(told["runtimePrecision"], told["runtimePrecision"])
    return {"modules": listed(request, kinds, numbers), "losses": losses}


def run_llama_cpp(request: Any) -> Any:
    """Types are those that its own reader finds, kernels what its CPU backend rounds an input to before each type."""
    llama_cpp, numpy = importlib.import_module("llama_cpp"), importlib.import_module("numpy")
    path, windows = f"{request['folder']}/model.gguf", request["windows"]
    length, threads = max(map(len, windows)), THREADS or None
    sizes = {"n_ctx": length, "n_batch": length, "n_ubatch": length, "n_threads": threads, "n_threads_batch": threads}
    in_float32 = {"type_k": 0, "type_v": 0}  # of the cache, as GGML numbers it
    engine = llama_cpp.Llama(path, logits_all=True, verbose=False, **sizes, **in_float32)
    losses = []
    for ids in windows:
        engine.reset()
        engine.eval(ids)
        losses.append(loss_of(numpy.array(engine.scores[: len(ids)]), ids))
    types = gguf_types(llama_cpp, path, request["tensors"])
    floats = {"F32", "F16", "BF16"}
    ran = [
        {"name": name, "scheme": "float" if kind in floats else kind, "kernel": f"{kind}, inputs in {given}"}
        for name, (kind, given) in zip(request["projections"], types, strict=True)
    ]
    return {"modules": ran, "losses": losses}


class GgufReading(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class CpuTraits(ctypes.Structure):
    """The beginning of ``ggml_type_traits_cpu``."""

    _fields_ = (("from_float", ctypes.c_void_p), ("vec_dot", ctypes.c_void_p), ("vec_dot_type", ctypes.c_int))


def gguf_types(llama_cpp: Any, path: str, tensors: Any) -> Any:
    """Of every tensor its type and that of an input before it, as llama.cpp's libraries name them."""
    # Beside libggml-cpu.so lie links to it that end in its version.
    cpu_file = min(glob.glob(os.path.join(os.path.dirname(llama_cpp.__file__), "lib", "*ggml-cpu.*")), key=len)
    library, cpu = llama_cpp.llama_cpp._lib, ctypes.CDLL(cpu_file)
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_init_from_file.argtypes = ctypes.c_char_p, GgufReading
    library.gguf_find_tensor.restype = ctypes.c_int64
    library.gguf_find_tensor.argtypes = ctypes.c_void_p, ctypes.c_char_p
    library.gguf_get_tensor_type.argtypes = ctypes.c_void_p, ctypes.c_int64
    library.ggml_type_name.restype = ctypes.c_char_p
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
    file = library.gguf_init_from_file(path.encode(), GgufReading(True, None))
    found = []
    for tensor in tensors:
        kind = library.gguf_get_tensor_type(file, library.gguf_find_tensor(file, tensor.encode()))
        pair = kind, cpu.ggml_get_type_traits_cpu(kind).contents.vec_dot_type
        found.append([library.ggml_type_name(number).decode().upper() for number in pair])
    return found


def fed(shapes: Any, ids: Any) -> Any:
    """What a graph is given for one window: nothing is cached, where it has a cache."""
    numpy = importlib.import_module("numpy")
    tokens = {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "position_ids": [list(range(len(ids)))]}
    return {
        name: numpy.array(tokens[name], numpy.int64)
        if name in tokens
        else numpy.zeros((1, int(shape[1]), 0, int(shape[3])), numpy.float32)
        for name, shape in shapes.items()
    }


def loss_of(logits: Any, ids: Any) -> Any:
    """Nats of every token but the first; logits are (tokens, vocabulary)."""
    numpy = importlib.import_module("numpy")
    scores = numpy.asarray(logits, numpy.float64)[:-1]
    highest = scores.max(1)
    total = numpy.log(numpy.exp(scores - highest[:, None]).sum(1)) + highest
    return (total - scores[numpy.arange(len(scores)), ids[1:]]).tolist()


def listed(request: Any, kernels: Any, schemes: Any) -> Any:
    """The projections that ran under their own names."""
    names = [name for name in request["projections"] if name in kernels]
    return [{"name": name, "scheme": schemes[name], "kernel": kernels[name]} for name in names]


if __name__ == "__main__":
    end_with_parent()
    main(*sys.argv[1:4], home=globals())
