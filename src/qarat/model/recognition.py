"""What a folder is that holds no float model of transformers' making: recognized by its files and tensors' names.

Each kind is one line that says what it is and the way out, where else a hundred tensors would be listed as missing.
What a tensor is called, and in what it is kept, decides; a file beside it only says what that is called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qarat.ground.disk import not_there
from qarat.ground.errors import UserError

if TYPE_CHECKING:  # what is merely looked for need not wait for safetensors
    from qarat.model.shards import Entry

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = re.compile(r"(adapter_model|(\d+_)?adapters)\.safetensors")  # PEFT's, MLX's
_UNMERGED = (".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.")
# Kinds of adapters of PEFT that act beside the weights, so that no merging makes a model of them.
_BESIDE = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Ends of names, the more telling first: what wrote them. `.weight_scale` is ModelOpt's, FP8's and compressed-tensors'.
_SIGNS = {
    ".g_idx": "GPTQ",
    ".qweight": "GPTQ or AWQ",
    ".quant_map": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "FP8 in blocks",
    ".weight_scale_2": "ModelOpt",
    ".weight_scales": "EETQ",
    ".weight._data": "quanto",
    ".W_q": "HQQ",
    ".q_weight": "EXL2",
    ".trellis": "EXL3",
    ".codebooks": "AQLM",
    ".centroids": "VPTQ",
    ".dense_weights": "SpQR",
    ".tables": "HIGGS",
    ".weight_scale": "FP8 or INT8",
    ".scales": "MLX",
}
# Files that name it, and what each is written by where it does not say so itself.
_FILES = {
    "hf_quant_config.json": "ModelOpt",
    "quanto_qmap.json": "quanto",
    "quantization_config.json": "AutoRound",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "quant_strategy.json": "AWQ",
}
_PICKLED = (
    "weights pickled by PyTorch, which may run code; save them as safetensors: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER_FOLDER)"
)
_GRAPH = "which has no float weights to begin from; give the checkpoint that it was made from"
# Weights that are no safetensors, by the names of their files: what they are, and the way out.
_OTHER_WEIGHTS = {
    "consolidated*.pth": "weights in Meta's own format; take the same model in transformers' (OWNER/NAME-hf)",
    "*.distcp": "a distributed checkpoint; save the whole model from it first, by the program that wrote it",
    "*optim_states.pt": "a checkpoint of DeepSpeed; put the model together first: python zero_to_fp32.py . FOLDER",
    "openvino*": f"an OpenVINO model, {_GRAPH}",
    "*.bin": _PICKLED,
    "*.pth": _PICKLED,
    "*.pt": _PICKLED,
    "*.ckpt": _PICKLED,
    "*.onnx": f"an ONNX model, {_GRAPH}",
    "*.engine": f"a TensorRT engine, {_GRAPH}",
    "*.h5": "weights of TensorFlow; give the same model's safetensors",
    "*.msgpack": "weights of Flax; give the same model's safetensors",
}
MULTIMODAL = (
    "a model of images (or sound) and text; qarat takes language models alone: save the one inside it, with its head, "
    "by its own class for causal language modelling"
)
_CARD = ("license", "license_name", "license_link", "language", "pipeline_tag")
_WRAPPERS = {  # ends of names; longer ones before what they end with
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning",
    "module.": "DataParallel",
    "base_model.model.": "PEFT",
}


def find_config(folder: Path) -> Path:
    """The config of a folder that an engine would load.

    Raises:
        UserError: No such folder, or none in it.
    """
    if not folder.is_dir():
        raise UserError(not_there(folder, "folder"))
    if not (path := folder / "config.json").is_file():
        own = f"; this one is qarat's own: `qarat export {folder}` writes one" * (folder / "manifest.json").is_file()
        raise UserError(f"{folder} holds no config.json; give the folder that an engine would load{own}")
    return path


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds nothing but an adapter."""
    weights = {*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")}
    return (folder / ADAPTER).is_file() and all(_ADAPTER_WEIGHTS.fullmatch(path.name) for path in weights)


def adapter_refusal(folder: Path) -> str:
    """What to say of an adapter, with the base model that it names."""
    fields = _fields(folder / ADAPTER)
    kind, base = str(fields.get("peft_type") or "LORA"), fields.get("base_model_name_or_path") or fields.get("model")
    if kind in _BESIDE:
        return (
            f"{folder} holds an adapter ({kind}), no model, and one that acts beside the weights, so that it cannot be "
            f"merged into them: qarat takes the base model{f', {base},' if base else ''} by itself"
        )
    how = "mlx_lm.fuse" if "fine_tune_type" in fields else "PeftModel.from_pretrained(…).merge_and_unload()"
    what = "a LoRA adapter" if kind == "LORA" else f"an adapter ({kind})"
    return (
        f"{folder} holds {what}, no model: merge it into its base model{f', {base},' if base else ''} first ({how}), "
        "save the whole, and give that folder"
    )


def other_weights(names: Collection[str]) -> str:
    """What files that are no safetensors hold, and the way out; empty where none of them is known.

    Args:
        names: Of the files.
    """
    return next((told for way, told in _OTHER_WEIGHTS.items() if any(fnmatch(name, way) for name in names)), "")


def quantized_as(folder: Path, tensors: Mapping[str, Entry]) -> str:
    """What a folder's weights were quantized by, in its own name; empty where they are float.

    Args:
        folder: Whose files may name it.
        tensors: All of its tensors, by name.
    """
    sign = next((what for end, what in _SIGNS.items() if any(end in name for name in tensors)), "")
    codes = [entry.dtype not in _FLOATS for entry in tensors.values() if len(entry.shape) > 1]
    if not sign and 2 * sum(codes) <= len(codes):  # a few may be a slip, which is told one by one
        return ""
    named = (
        _fields(folder / file).get("quant_method", what) for file, what in _FILES.items() if (folder / file).is_file()
    )
    return str(next(named, sign or "it does not say how"))


def quantized_refusal(folder: Path, method: str, *, by_config_alone: bool = False) -> str:
    """What to say of a folder that somebody else quantized, or whose config alone says so of float weights."""
    left = "; or, where the float weights here are its own, take quantization_config out of its config.json"
    problem = f"{folder} is quantized already ({method}); qarat begins from the float checkpoint: give that"
    return problem + left if by_config_alone else problem


def names_refusal(path: Path, present: Collection[str], wanted: Collection[str]) -> str:
    """What to say where names of tensors are no model's, or another's by what they all begin with; empty if neither.

    Args:
        path: Of the checkpoint.
        present: Names of its tensors.
        wanted: Names that the config asks for.
    """
    if any(sign in name for name in present for sign in _UNMERGED):
        return (
            f"{path} holds LoRA matrices, or what another adapter put beside the weights: merge them into the weights "
            "first (merge_and_unload), and save that"
        )
    surplus, missing = set(present) - set(wanted), set(wanted) - set(present)
    if any("language_model." in name for name in surplus):
        return f"{path}: its names of tensors have 'language_model.' in them: it is {MULTIMODAL}"
    if any(".attention.wq." in name for name in surplus):
        return f"{path}: its names of tensors are those of Meta's and Mistral's own format; take transformers' instead"
    prefix = _common_prefix(surplus, missing)
    if prefix:
        wrapper = next((f", as {who} wraps them" for word, who in _WRAPPERS.items() if prefix.endswith(word)), "")
        return f"{path}: its names of tensors begin with {prefix!r}{wrapper}: save the model that is inside it"
    prefix = _common_prefix(missing, surplus)
    if prefix:
        return (
            f"{path}: its names of tensors lack {prefix!r}: it was saved from the model inside the one for causal "
            "language modelling; save that one, head and all"
        )
    return ""


def read_card(folder: Path) -> dict[str, Any]:
    """Of the head of a model's card what belongs to its derivatives' too; empty where there is none to read."""
    import yaml  # here: a folder that is merely looked for need not wait for it

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head: Any = yaml.safe_load(re.split(r"^---\s*$", text, flags=re.M)[1])
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    return {key: head[key] for key in _CARD if key in head} if isinstance(head, dict) else {}


def _common_prefix(longer: Collection[str], shorter: Collection[str]) -> str:
    """What stands in front of the shorter names in all of the longer ones; empty if nothing does."""
    if not longer or not shorter:
        return ""
    some = min(shorter)
    prefixes = [name.removesuffix(some) for name in longer if name.endswith(f".{some}")]
    return next((p for p in prefixes if sum(p + name in longer for name in shorter) * 2 > len(shorter)), "")


def _fields(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none that can be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
