"""The skeleton of a model: transformers' own module, on the meta device but for what lies outside the blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from qarat.ground.errors import UserError
from qarat.ground.runtime import Runtime
from qarat.model.attention import ATTENTION
from qarat.model.checkpoints import Checkpoint
from qarat.model.families.base import Family
from qarat.values.roles import CACHES, Role
from qarat.values.sites import Site


def list_sites(skeleton: nn.Module, family: Family) -> tuple[Site, ...]:
    """Every site in the order of the forward pass, with shapes from the skeleton."""
    sites: list[Site] = []
    for i, layer in enumerate(cast(nn.ModuleList, skeleton.get_submodule(family.blocks))):
        prefix = f"{family.blocks}.{i}"
        # What attention's heads put out, side by side, is what the next projection reads.
        behind = family.reader(Role.ATTENTION_OUTPUT)
        width = cast(nn.Linear, layer.get_submodule(behind)).in_features
        kept = cast(nn.Linear, layer.get_submodule(family.stream(Role.ATTENTION_OUTPUT).source)).out_features
        for stream in family.streams:
            for reader in stream.readers:
                linear = cast(nn.Linear, layer.get_submodule(reader))
                tie = stream.name if stream.fused else ""
                streams = (f"{prefix}.{stream.name}",)
                shape, has_bias = tuple(linear.weight.shape), linear.bias is not None
                sites.append(Site(f"{prefix}.{reader}", i, "projection", streams, shape, tie, has_bias))
            if stream.role == Role.ATTENTION_INPUT:
                home = f"{prefix}.{family.attention}"
                for leaf in CACHES:
                    sites.append(Site(f"{home}.{leaf}", i, "cache", (f"{prefix}.{leaf}",), width=kept))
                for leaf, operands in (("qk", "qk"), ("av", "pv")):
                    streams = tuple(f"{prefix}.{operand}" for operand in operands)
                    sites.append(Site(f"{home}.{leaf}", i, "product", streams, width=width))
    return tuple(sites)


def build_skeleton(checkpoint: Checkpoint, family: Family, runtime: Runtime) -> nn.Module:
    """The model on the meta device, with everything outside the blocks made real."""
    config = checkpoint.config
    skeleton: Any = checkpoint.skeleton(attn_implementation=ATTENTION, dtype=runtime.torch_dtype)
    _check_parts(skeleton, checkpoint, family)
    head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
    tied: set[str] = {head} if config.tie_word_embeddings else set()
    wanted: Mapping[str, Tensor] = {k: v for k, v in skeleton.state_dict().items() if k not in tied}
    checkpoint.check(wanted, optional=tied)
    if family.rotary:  # only now: by the shapes of the weights, its size makes sense
        _make_rotary(skeleton, family.rotary, checkpoint, runtime)
    embed: Any = skeleton.get_submodule(family.embedding)
    if hasattr(embed, "scalar_embed_scale"):  # Gemma's; a buffer that no checkpoint holds either
        embed.embed_scale = torch.tensor(embed.scalar_embed_scale, device=runtime.device)
    outside = {key: value for key, value in wanted.items() if not key.startswith(f"{family.blocks}.")}
    state = checkpoint.read_outside(outside, runtime)
    if tied:
        state[head] = state[embedding]
        if head in checkpoint and not checkpoint.read("", {head: state[head]}, runtime)[head].equal(state[head]):
            raise UserError(
                f"{checkpoint.path}: the config ties {head} to {embedding}, but the file has two that differ; "
                'if both are meant, say "tie_word_embeddings": false in config.json'
            )
    skeleton.load_state_dict(state, assign=True, strict=False)
    if (checkpoint.folder / "generation_config.json").is_file():
        skeleton.generation_config = _read_generation_config(checkpoint.folder)
    ids = len(checkpoint.tokenizer)
    rows = skeleton.get_submodule(family.embedding).weight.shape[0]
    if ids > rows:
        raise UserError(
            f"{checkpoint.path}: the tokenizer knows {ids} ids, the embedding has {rows} rows: they do not belong "
            "together; take both from the same model"
        )
    return skeleton.eval().requires_grad_(False)


def widen(skeleton: nn.Module, family: Family, inner: int) -> PreTrainedConfig:
    """Give the MLPs of a skeleton another inner width.

    Args:
        skeleton: Whose blocks are on the meta device; changed in place.
        family: Of the model.
        inner: Channels of the MLP's inner activation.

    Returns:
        The config that says so. The one the skeleton was built from is the checkpoint's, and stays as it is.
    """
    before = cast(PreTrainedConfig, skeleton.config)
    config = copy.deepcopy(before)
    setattr(config, family.inner_width, inner)
    for module in skeleton.modules():
        if getattr(module, "config", None) is before:
            cast(Any, module).config = config
    for block in cast(nn.ModuleList, skeleton.get_submodule(family.blocks)):
        for name in family.stream(Role.MLP_INPUT).readers:
            linear = cast(nn.Linear, block.get_submodule(name))
            block.set_submodule(name, _resized(linear, linear.in_features, inner))
        for name in family.stream(Role.DOWN_INPUT).readers:
            linear = cast(nn.Linear, block.get_submodule(name))
            block.set_submodule(name, _resized(linear, inner, linear.out_features))
    return config


def with_parts(root: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A module with others in some places, given by their paths; the module itself stays as it is."""
    whole = _shallow(root)
    copied = {"": whole}
    for path, part in parts.items():
        *way, name = path.split(".")
        at = ""
        for step in way:
            home, at = copied[at], f"{at}.{step}"
            if at not in copied:
                copied[at] = home._modules[step] = _shallow(home.get_submodule(step))
        copied[at]._modules[name] = part
    return whole


def _shallow(module: nn.Module) -> nn.Module:
    """A copy whose children may be replaced; they are the module's own."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def _resized(linear: nn.Linear, inputs: int, outputs: int) -> nn.Linear:
    """A projection without numbers that is like another but for its shape."""
    has_bias, dtype = linear.bias is not None, linear.weight.dtype
    return nn.Linear(inputs, outputs, bias=has_bias, device="meta", dtype=dtype).requires_grad_(False)


def _check_parts(skeleton: nn.Module, checkpoint: Checkpoint, family: Family) -> None:
    """Refuse variants of an architecture that lack what the walk goes through (OPT-350M has no last norm)."""
    for path in (family.embedding, family.norm, family.head):
        try:
            skeleton.get_submodule(path)
        except AttributeError:
            name = ", ".join(family.architectures)
            raise UserError(f"{checkpoint.path}: a {name} without {path} is a variant that is not supported") from None


def _make_rotary(skeleton: nn.Module, path: str, checkpoint: Checkpoint, runtime: Runtime) -> None:
    """Make the module that computes position embeddings, whose buffers no checkpoint holds."""
    parent, _, name = path.rpartition(".")
    try:
        rotary: nn.Module = type(skeleton.get_submodule(path))(config=checkpoint.config)
    except Exception as error:  # whatever stumbles first over position embeddings that make no sense
        raise UserError(f"{checkpoint.folder / 'config.json'} describes no position embeddings: {error!r}") from error
    setattr(skeleton.get_submodule(parent), name, rotary.to(runtime.device))


def _read_generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds; all mean that the file is no good
        raise UserError(
            f"{folder / 'generation_config.json'} cannot be read: {error!r}; take it from where the model comes from, "
            "or remove it"
        ) from error
