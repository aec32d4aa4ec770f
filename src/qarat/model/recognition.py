"""What a folder is that holds no float model of transformers' making: recognized by its files and tensors' names.

Each kind is one line that says what it is and the way out, where else a hundred tensors would be listed as missing.
What a tensor is called, and in what it is kept, decides; a file beside it only says what that is called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is merely looked for need not wait for safetensors
    from qarat.model.shards import Entry

ADAPTER = "adapter_config.json"
_LORA = (".lora_A.", ".lora_B.", ".lora_embedding_")
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
    ".W_q": "HQQ",
    ".q_weight": "EXL2",
    ".weight_scale": "FP8 or INT8",
    ".scales": "MLX",
}
# Files that name it, and what each is written by.
_FILES = {
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "quant_strategy.json": "AWQ",
}
_CARD = ("license", "license_name", "license_link", "language", "pipeline_tag")
_WRAPPERS = {  # ends of names; longer ones before what they end with
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning",
    "module.": "DataParallel",
    "base_model.model.": "PEFT",
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds nothing but a PEFT adapter."""
    weights = {*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")}
    return (folder / ADAPTER).is_file() and weights <= {folder / "adapter_model.safetensors"}


def adapter_refusal(folder: Path) -> str:
    """What to say of an adapter, with the base model that it names."""
    base = _fields(folder / ADAPTER).get("base_model_name_or_path")
    named = f", {base}," if base else ""
    return (
        f"{folder} holds a LoRA adapter, no model: merge it into its base model{named} first "
        "(PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…)), and give that folder"
    )


def quantized_as(folder: Path, tensors: Mapping[str, Entry]) -> str:
    """What a folder's weights were quantized by, in its own name; empty where they are float.

    Args:
        folder: Whose files may name it.
        tensors: All of its tensors, by name.
    """
    sign = next((what for end, what in _SIGNS.items() if any(end in name for name in tensors)), "")
    if not sign and all(entry.dtype in _FLOATS for name, entry in tensors.items() if name.endswith(".weight")):
        return ""
    return next((what for file, what in _FILES.items() if (folder / file).is_file()), sign)


def quantized_refusal(folder: Path, method: str) -> str:
    """What to say of a folder that somebody else quantized."""
    return f"{folder} is quantized already ({method}); qarat begins from the float checkpoint: give that"


def names_refusal(path: Path, present: Collection[str], wanted: Collection[str]) -> str:
    """What to say where names of tensors are no model's, or another's by what they all begin with; empty if neither.

    Args:
        path: Of the checkpoint.
        present: Names of its tensors.
        wanted: Names that the config asks for.
    """
    if any(sign in name for name in present for sign in _LORA):
        return (
            f"{path} holds LoRA matrices beside the weights: merge them into the weights first (merge_and_unload), and "
            "save that"
        )
    surplus, missing = set(present) - set(wanted), set(wanted) - set(present)
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
