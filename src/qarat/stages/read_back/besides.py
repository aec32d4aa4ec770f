"""What a folder asks of engines besides its projections: a quantized cache, head or embedding, sparsity, transforms.

Engines differ here from version to version. What is said of each follows from its row; what qarat does not follow
itself is not judged, which is no pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from qarat.stages.read_back.arguments import Args
from qarat.stages.read_back.folders import FLOAT_KINDS, Findings, StoredFolder
from qarat.values.engines import Engine
from qarat.values.records.verification import Severity

_ELSEWHERE = "try it in that engine, and compare with the float model there"
_UNTIE = 'set "tie_word_embeddings": false, or take those tensors out'
_DENSE = "write the folder again without sparsity, its weights dense"


def graveness(engine: Engine, severity: Severity, *, lenient: bool) -> Severity:
    """How severe it is if something does not work in an engine: in an older version alone only a warning.

    Args:
        engine: Whose row says so.
        severity: In a current version, or one that was asked for by name.
        lenient: Whether none was.
    """
    return "warning" if lenient and not engine.current else severity


def check_besides(folder: StoredFolder, engines: Sequence[Engine], findings: Findings, *, lenient: bool) -> None:
    """Everything of a folder that is no module's.

    Args:
        folder: Opened.
        engines: Whose rules to follow.
        findings: What is found is added to it.
        lenient: Whether what breaks in an engine's older versions alone is only a warning.
    """
    config = folder.config
    for group in config.groups:
        if group.outputs:
            what = f"{group.name} quantizes outputs, which qarat does not follow"
            findings.add("not judged", what, _ELSEWHERE)
        if group.is_attention:
            what = f"{group.name} quantizes attention ({group.targets[0]}), which qarat does not follow"
            findings.add("not judged", what, f"{_ELSEWHERE}; vLLM leaves the group aside, and goes by kv_cache_scheme")
    if config.unknown:
        what = f"quantization_config has {', '.join(config.unknown)}, and what engines make of that is not known here"
        findings.add("not judged", what, "take it out if it is left over from another format")
    if config.transforms:
        what = "transform_config is set: engines turn inputs or outputs at run time, which qarat does not follow"
        findings.add("not judged", what, _ELSEWHERE)
    for engine in engines:
        _check_sparse(folder, engine, findings, lenient=lenient)
        _check_cache(folder, engine, findings, lenient=lenient)
    _check_cache_scales(folder, findings)
    _check_tie(folder, engines, findings, lenient=lenient)
    _check_places(folder, findings)


def _check_sparse(folder: StoredFolder, engine: Engine, findings: Findings, *, lenient: bool) -> None:
    config, since = folder.config, engine.change("sparse")
    if config.sparse and engine.sparse == "held":
        severity = graveness(engine, "not judged", lenient=lenient)
        what = f"weights are sparse ({config.sparse}), which qarat does not follow"
        findings.add(severity, what, _ELSEWHERE, engines=(engine.name,))
    elif config.sparse:
        severity = graveness(engine, "error", lenient=lenient)
        what = f"refused: weights are sparse ({config.sparse}), which it no longer reads"
        findings.add(severity, what, f"{_DENSE} ({since})", engines=(engine.name,))
    elif config.sparse_targets and engine.sparse == "refused, dense too":
        severity = graveness(engine, "error", lenient=lenient)
        what = "refused: it has a sparsity_config with targets, though its weights are dense"
        remedy = f"take sparsity_config out of the config, it says nothing of dense weights ({since})"
        findings.add(severity, what, remedy, engines=(engine.name,), blocks=False)


def _check_cache(folder: StoredFolder, engine: Engine, findings: Findings, *, lenient: bool) -> None:
    """What an engine makes of ``kv_cache_scheme``."""
    args = folder.config.kv_cache
    if args is None:
        return
    kind, since = f"{args.type}{args.num_bits}/{args.kind}", engine.change("kv_cache")
    because, only = f" ({since})" if since else "", (engine.name,)
    if _is_held(args, kind, engine):
        what = f"keys and values are kept in {kind}, as kv_cache_scheme says"
        findings.add("note", what, f"start it with the cache that the scheme names{because}", engines=only)
    elif args.symmetric and re.fullmatch(engine.kv_taken, kind + "/dynamic" * bool(args.dynamic)):
        what = f"kv_cache_scheme {_described(args, kind)} is taken for static FP8, without a word"
        remedy = f"scales that are there are read as FP8's, others are 1: quantize the cache so{because}"
        findings.add("warning", what, remedy, engines=only)
    elif engine.other_kv_cache == "refused":
        what = f"refused: kv_cache_scheme {_described(args, kind)} is none that it has"
        remedy = f"quantize the cache again as static, symmetric float8 per tensor, or not at all{because}"
        findings.add(graveness(engine, "error", lenient=lenient), what, remedy, engines=only, blocks=False)
    else:
        what = f"kv_cache_scheme {_described(args, kind)} is left aside, without a word: no scale of it is used"
        remedy = f"do not ask it for an FP8 cache, whose scales would be 1{because}"
        findings.add("warning", what, remedy, engines=only)


def _is_held(args: Args, kind: str, engine: Engine) -> bool:
    """Whether an engine follows a scheme of the cache; transformers, which simulates it, whatever it is."""
    plain = args.symmetric and not args.dynamic
    return re.fullmatch(engine.kv_cache, kind) is not None and (plain or not engine.fuses)


def _described(args: Args, kind: str) -> str:
    return kind + ("" if args.symmetric else ", asymmetric") + (", dynamic" if args.dynamic else "")


def _check_cache_scales(folder: StoredFolder, findings: Findings) -> None:
    """Whether the scales of keys and values are there that a static scheme needs, and the other way round."""
    args, names = folder.config.kv_cache, folder.cache_scales
    if args is None and names:
        what = f"{_listed(names)}: scales of a quantized KV cache, and no kv_cache_scheme that asks for one"
        remedy = "keep them: an engine that is started with an FP8 cache reads them (vLLM: --kv-cache-dtype fp8)"
        findings.add("note", what, remedy)
    if args is None or args.dynamic:
        return
    attention = f"{folder.family.blocks}.{{}}.{folder.family.attention}."
    missing: list[str] = []
    for index in range(folder.checkpoint.config.num_hidden_layers):
        own = [name for name in names if name.startswith(attention.format(index))]
        missing += [attention.format(index) + leaf for leaf in ("k_scale", "v_scale") if not _has(own, leaf)]
    heads = folder.checkpoint.config.num_key_value_heads if args.kind == "attn_head" else 1
    sizes = {
        name: math.prod(folder.checkpoint.headers[name][1]) for name in names if name.endswith(("k_scale", "v_scale"))
    }
    if other := [name for name, size in sizes.items() if size not in (1, heads)]:  # a single one is spread
        what = f"{_listed(other)} of {sizes[other[0]]} scales, where {args.kind} asks for {heads}: loading stops"
        findings.add("error", what, "write the scales of the cache again")
    if missing:
        what = f"{_listed(missing)} missing: kv_cache_scheme is static, and engines take 1 for what is not there"
        findings.add("warning", what, "calibrate the cache and write its scales, or leave kv_cache_scheme out")


def _has(names: Iterable[str], leaf: str) -> bool:
    return any(name.endswith((f".{leaf}", ".kv_scale", f".{leaf[0]}_proj.output_scale")) for name in names)


def _check_tie(folder: StoredFolder, engines: Sequence[Engine], findings: Findings, *, lenient: bool) -> None:
    """A head that is stored by itself, where the config says that it is the embedding."""
    own = folder.left_head
    for engine in engines if own else ():
        what = f"{_listed(own)} of its own, and the head is tied to the embedding by the config"
        if engine.fuses:
            severity = graveness(engine, "error", lenient=lenient)
            findings.add(severity, f"{what}: left out", _UNTIE, engines=(engine.name,))
        else:
            findings.add(
                "not judged", f"{what}: which of the two runs is not known here", _UNTIE, engines=(engine.name,)
            )


def _check_places(folder: StoredFolder, findings: Findings) -> None:
    """Tensors of the model that are no linear module's, and tensors that nothing in the model asks for."""
    headers = folder.checkpoint.headers
    if missing := [name for name in folder.others if name not in headers]:
        what = f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        findings.add("error", what, "write the folder again")
    for name in filter(headers.__contains__, folder.others):
        shape = folder.others[name]
        if headers[name][0] not in FLOAT_KINDS:
            what = f"{name} is kept as {headers[name][0]}, and nothing says what that stands for"
            findings.add("error", what, "write it in float")
        elif headers[name][1] != shape:
            findings.add("error", f"{name} is {headers[name][1]}, the model asks for {shape}", "write the folder again")
    if folder.strays and not folder.config.sparse:  # whose tensors have names of their own
        one = len(folder.strays) == 1
        what = f"{_listed(folder.strays)} {'belongs' if one else 'belong'} to no module of the model"
        remedy = "find out who wrote them, and what for: engines leave such tensors out, or stop at them"
        findings.add("warning", what, remedy)


def _listed(names: Sequence[str]) -> str:
    """The first two names and how many more."""
    noun = "the tensor" if len(names) == 1 else "the tensors"
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{noun} {', '.join(names[:2])}{more}"
