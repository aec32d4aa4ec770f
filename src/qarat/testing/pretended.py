"""A CUDA device that is pretended: what lies there lies in the CPU's memory, and says that it does not.

A machine with a GPU tells at once where a tensor of the CPU meets one of the GPU; a machine without one never does.
Here every tensor on the pretended device is wrapped, and each operation of torch is looked at: wrapped and plain
tensors refuse each other where CUDA would refuse them. So a test on any machine finds code that forgets the device. Of
what CUDA computes otherwise one thing is imitated: it divides by a number by multiplying with its reciprocal, and so
rounds twice (`div_true_kernel_cuda` in torch's BinaryDivTrueKernel.cu).

What it cannot find: an operation that CUDA lacks or computes otherwise, memory, time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY = 1 << 30
"""Bytes of the device, all of them free."""

_DEVICE = torch.device("cuda", 0)
_COPIES = ("aten::copy_", "aten::_to_copy")
_DIVISIONS = {
    torch.ops.aten.div.Tensor: torch.ops.aten.mul.Tensor,
    torch.ops.aten.div_.Tensor: torch.ops.aten.mul_.Tensor,
}
_INDEXES = ("aten::index", "aten::index_put", "aten::index_put_")  # of a tensor there, by indices on the CPU


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Let torch see a CUDA device while the context lasts.

    Raises:
        RuntimeError: There is a real one, whose tensors would meet those of the pretended one.
    """
    if torch.cuda.is_available():
        raise RuntimeError("this machine has a CUDA device; test with that")
    there = mock.patch.multiple(
        torch.cuda, is_available=lambda: True, _lazy_init=lambda: None, mem_get_info=lambda: (MEMORY, MEMORY)
    )
    inner: Any = torch._C
    before = inner._only_lift_cpu_tensors()
    inner._set_only_lift_cpu_tensors(True)  # so that what `torch.tensor` makes is brought there where it can be seen
    try:
        with there, _Calls() as calls, _Operations(calls):
            yield
    finally:
        inner._set_only_lift_cpu_tensors(before)


class PretendedTensor(Tensor):
    """A tensor on the pretended device.

    To torch itself it lies on the meta device, whose operations and gradients ask for no driver.

    Attributes:
        held: Its numbers, on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendedTensor:
        """Wrap a tensor of the CPU."""
        made = cast(Any, Tensor)._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The pretended one."""
        return _DEVICE

    is_cuda = cast(Any, True)
    is_meta = is_cpu = cast(Any, False)

    def tolist(self) -> Any:
        """Its numbers."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as by CUDA."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __reduce_ex__(self, proto: object) -> Any:
        """By its numbers."""
        return PretendedTensor, (self.held,)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Its numbers."""
        return f"pretended {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Never reached while the device is there: `_Operations` comes first."""
        raise RuntimeError(f"{func}: the pretended device is gone")


class _Calls(TorchFunctionMode):
    """Sees calls of torch's functions, before they come apart into operations.

    It gives the device its number where one leaves it out, for which torch would ask a driver; and it knows whether a
    call is about tensors of the device, so that what torch makes on the meta device on its way belongs there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _map(_numbered, args), _map(_numbered, kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(_DEVICE)
        before, self.inside = self.inside, self.inside or _are_there(args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = before


class _Operations(TorchDispatchMode):
    """Sees the operations that calls come apart into, and computes them on the CPU."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = _are_there(args, kwargs)
        device = kwargs.get("device")
        if device is not None:
            # To torch itself a wrapped tensor's device is meta: what is made or brought where such a one lies.
            there = device.type == "cuda" or (device.type == "meta" and (there or self._calls.inside))
            kwargs = kwargs | {"device": torch.device("cpu")} if there else kwargs
        elif there:
            _check(func, args, kwargs)
        if there and func in _DIVISIONS and not isinstance(args[1], PretendedTensor):
            func, args = _DIVISIONS[func], (args[0], _reciprocal(*args))
        result = func(*_map(_held, args), **_map(_held, kwargs))
        return _map(_wrapped, result) if there else result


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Refuse what CUDA would.

    Raises:
        RuntimeError: A tensor of the CPU among those of the device, or an operation for CPUs.
    """
    name = func._schema.name
    if name in _COPIES:
        return
    if name in _INDEXES and isinstance(args[0], PretendedTensor):
        args = [args[0], *(value for value in args[2:3] if value.dim())]
    alone = torch.Tag.pointwise in func.tags  # takes a single number from the CPU
    plain = [
        tensor
        for tensor in _tensors((args, kwargs))
        if not isinstance(tensor, PretendedTensor) and not (alone and tensor.dim() == 0)
    ]
    if plain or name.startswith("onednn"):
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in plain)
        raise RuntimeError(f"{name}: on cuda:0, beside tensors of the CPU: {shapes or 'none, but it is for CPUs'}")


def _reciprocal(dividend: Tensor, number: Tensor | float) -> Tensor:
    """Of a number, in the dtype in which CUDA multiplies."""
    wide = torch.promote_types(dividend.dtype, torch.float32) if dividend.is_floating_point() else torch.float32
    return 1 / torch.as_tensor(number).to(wide)


def _are_there(*values: Any) -> bool:
    return any(isinstance(tensor, PretendedTensor) for tensor in _tensors(values))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """A value, or a list, tuple or dict of such, with each leaf changed."""
    if type(value) is dict:
        return {key: _map(change, inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(change, inner) for inner in value)
    return change(value)


def _numbered(value: Any) -> Any:
    return _DEVICE if isinstance(value, str | torch.device) and str(value) == "cuda" else value


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


def _wrapped(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) else value
