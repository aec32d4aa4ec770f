"""The native folder: everything a plan can say, as plain safetensors beside the source's config and tokenizer.

A float tensor keeps its name and the source's dtype. A quantized projection becomes ``NAME.codes`` (packed,
little-endian in bits), ``NAME.scale``, and where the scheme has them ``NAME.zero_point``, ``NAME.tensor_scale``,
``NAME.input_scale`` and ``NAME.input_zero_point``; tables of its own lie in ``NAME.table`` in place of a scale, a
sparse part in ``NAME.sparse_values``, ``NAME.sparse_columns`` and ``NAME.sparse_ends``. ``plan.json`` says what they
mean; the index keeps its hash, so that neither changes alone. One file a block, so that writing and reading need the
memory of one. No engine loads this format, and none can by mistake, since the index has a name of its own; it is what
`qarat` itself measures, and what exports are compared with.

Of a plan with a prefix, ``prefix.safetensors`` holds what an engine's cache would begin with: for every block
``BLOCK.prefix_keys`` (position embeddings in them) and ``BLOCK.prefix_values``, (key heads, tokens, head width); and
``BLOCK.prefix_states``, (tokens, hidden) behind the block, of which the last block's give the first prediction.
All are float32.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors.torch import save
from torch import Tensor

from qarat.ground.disk import check_folder, new_folder
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, Runtime, no_progress
from qarat.model.checkpoints import Checkpoint
from qarat.model.folders import INDEX, KINDS, NATIVE_INDEX, PLAN, copy_beside, require_exact
from qarat.model.model import Model, Transform
from qarat.model.native_tensors import block_tensors, expected_tensors, prefix_tensors, read_block
from qarat.model.prefixes import PrefixedBlock
from qarat.model.shards import Entry, locate_tensors
from qarat.values.fingerprints import source_of, transforms_of
from qarat.values.plan_files import encode_plan
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash, decode_record

FORMAT = "qarat-native/1"
T = TypeVar("T")
PREFIX = "prefix.safetensors"
SOURCES = "source_map"  # which tensors lay together in the float checkpoint: an export keeps them together


def is_native(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / PLAN).is_file() and (folder / "config.json").is_file()


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Check, before any work, that a native folder can be written.

    Raises:
        UserError: If something is in its place that may not be replaced, or no permission.
    """
    check_folder(folder, PLAN, overwrite=overwrite)
    if folder.exists() and any(folder.iterdir()) and not is_native(folder):  # a run's folder holds a plan as well
        raise UserError(f"{folder} is no quantized folder, so `overwrite` leaves it; give another `out`")


def write_native(model: Model, plan: Plan, folder: Path, *, progress: Progress = no_progress) -> None:
    """Write a quantized model, beside its place and then renamed.

    Args:
        model: From `qarat.stages.quantize.quantize`; computed in float32, or in the dtype of its checkpoint.
        plan: That it was quantized with.
        folder: To be made; one that was written by this function before is replaced.
        progress: Called after every block.

    Raises:
        UserError: If it cannot be written, something else is in its place, or the model was rounded when it was read.
    """
    require_exact(model)
    check_place(folder, overwrite=True)
    with new_folder(folder, PLAN) as partial:
        (partial / PLAN).write_text(encode_plan(plan))  # first, as the mark of what is ours
        where: dict[str, str] = {}
        prefix: dict[str, Tensor] = {}
        _write(partial / "outside.safetensors", _outside(model), where)
        progress("write", 0, model.blocks)
        for index, block in model.walk():
            home = f"{model.family.blocks}.{index}."
            if isinstance(block, PrefixedBlock):
                prefix |= prefix_tensors(block.prefix, home)
                block = block.block
            tensors = block_tensors(block, home, model.checkpoint)
            _write(partial / f"block-{index:03d}.safetensors", tensors, where)
            progress("write", index + 1, model.blocks)
        if prefix:
            _write(partial / PREFIX, prefix, where)
        metadata = {"format": FORMAT, "plan": content_hash(plan)}
        if model.checkpoint.source:
            metadata["source"] = model.checkpoint.source
        weight_map, source_map = dict(sorted(where.items())), dict(sorted(model.checkpoint.files.items()))
        index_file = {"metadata": metadata, "weight_map": weight_map, SOURCES: source_map}
        index_file |= {"origin": model.checkpoint.origin, "card": model.checkpoint.card}
        (partial / NATIVE_INDEX).write_text(json.dumps(index_file, indent=1) + "\n")
        copy_beside(model, partial)


def read_native(folder: Path, runtime: Runtime | None = None) -> tuple[Model, Plan]:
    """Open a native folder; its model is walked, evaluated and generates like any other.

    Args:
        folder: As `write_native` wrote it.
        runtime: Device, dtype and limits; default a GPU if there is one, float32.

    Raises:
        UserError: Damaged or contradictory files.
    """
    if not is_native(folder):
        raise UserError(f"{folder} is no quantized folder of qarat: {PLAN} or config.json is missing; quantize again")
    plan = decode_record(folder / PLAN, Plan)
    source = _check_index(folder, plan)
    runtime = runtime or Runtime()
    transforms = tuple(Transform(word) for word in transforms_of(plan.model))
    model = Model(_NativeCheckpoint(folder, plan, source), runtime, transforms=transforms)
    plan.check(plan.model, model.sites())
    return model.with_blocks(lambda index: read_block(model, plan, index)), plan


def _check_index(folder: Path, plan: Plan) -> str:
    """Check that the tensors were written in this format and under this plan; what the float model was made from."""
    try:
        metadata: dict[str, str] = _read_index(folder)["metadata"]
        format, written_under = metadata["format"], metadata["plan"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / NATIVE_INDEX} is damaged ({error!r}); quantize again") from error
    if format != FORMAT:
        raise UserError(f"{folder} is written as {format}, this qarat reads {FORMAT}; quantize again")
    if written_under != content_hash(plan):
        raise UserError(
            f"{folder / PLAN} is not the plan that these tensors were written under; quantize again with it"
        )
    return str(metadata.get("source", ""))


def _read_index(folder: Path) -> dict[str, Any]:
    """What lies where, and under which plan it was written.

    Raises:
        UserError: Missing, damaged, or of a folder that was written under the name that others read.
    """
    path = folder / NATIVE_INDEX
    if not path.is_file() and (folder / INDEX).is_file():
        raise UserError(f"{folder} was written by an earlier qarat, under names that others read too; quantize again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}); quantize again") from error


class _NativeCheckpoint(Checkpoint):
    """A native folder, whose blocks hold codes; it goes by the fingerprint of the float model it was made from."""

    def __init__(self, folder: Path, plan: Plan, source: str) -> None:
        super().__init__(folder)
        self.plan, self.source = plan, source

    @property
    def fingerprint(self) -> str:
        return source_of(self.plan.model)

    @property
    def files(self) -> dict[str, str]:
        """Name of every tensor of the *float* checkpoint to that of the file it lay in.

        Raises:
            UserError: A damaged index.
        """
        return self._of_index(SOURCES, dict[str, str])

    @property
    def origin(self) -> str:
        """What the float model was called."""
        return self._of_index("origin", str)

    @property
    def card(self) -> dict[str, Any]:
        """Of the float model."""
        return self._of_index("card", dict[str, Any])

    def _of_index(self, key: str, kind: type[T]) -> T:
        """What the index has under a key.

        Raises:
            UserError: A damaged index.
        """
        try:
            return msgspec.convert(_read_index(self.folder)[key], kind)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise UserError(f"{self.folder / NATIVE_INDEX} is damaged ({error!r}); quantize again") from error

    def _locate(self) -> dict[str, Entry]:
        return locate_tensors(self.folder, NATIVE_INDEX)

    def check(self, wanted: Mapping[str, Tensor], optional: Collection[str] = ()) -> None:
        """Check from the headers alone that the tensors are those of the plan.

        Args:
            wanted: Name to a tensor (on any device) of the shape that the config asks for.
            optional: Names that may be there as well.

        Raises:
            UserError: Listing every tensor that is missing, surplus, or of another shape or kind.
        """
        expected, present = expected_tensors(self.plan, wanted, self.config), self.headers
        offences = [f"{name}: missing" for name in expected.keys() - present.keys()]
        offences += [f"{name}: not in the plan" for name in present.keys() - expected.keys() - set(optional)]
        for name in expected.keys() & present.keys():
            kinds, shape = (
                _FLOAT_KINDS if name in wanted else (KINDS[expected[name].dtype],),
                tuple(expected[name].shape),
            )
            if present[name][0] not in kinds or present[name][1] != shape:
                offences.append(f"{name}: {present[name]} in the file, {(kinds[0], shape)} by the plan")
        if offences:
            listed = "\n  ".join(sorted(offences))
            raise UserError(f"{self.folder}: plan and tensors disagree:\n  {listed}\nquantize again")


_FLOAT_KINDS = ("F32", "F16", "BF16")


def _outside(model: Model) -> dict[str, Tensor]:
    """Everything that lies outside the blocks, in the source's dtypes; a tied head is not repeated."""
    state = model.outside()
    if model.config.tie_word_embeddings:
        state.pop(f"{model.family.head}.weight", None)
    return {name: value.to(model.checkpoint.dtype_of(name)) for name, value in state.items()}


def _write(path: Path, tensors: dict[str, Tensor], where: dict[str, str]) -> None:
    # Python's own write: its errors name their cause (no space, read-only), those of safetensors' writer do not.
    path.write_bytes(save({name: value.contiguous().cpu() for name, value in tensors.items()}, {"format": "pt"}))
    where |= dict.fromkeys(tensors, path.name)
