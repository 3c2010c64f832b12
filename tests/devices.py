"""A device that does not exist: tensors that compute on the CPU, say that they lie on a GPU, and meet no others.

torch's fake tensors hold no values, and most stages depend on them (how many objects, which pixels). Here every tensor
"on the GPU" holds its values on the CPU; torch sees `meta`, the code under test sees `cuda:0`. What a GPU refuses is
refused: operations on tensors of two devices, generators of another device, NumPy. What makes the program wait for the
GPU, or copies to it, is counted by line.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import cups
from cups.model import boxes

DEVICE, _META = torch.device("cuda", 0), torch.device("meta")
_PACKAGE = str(Path(cups.__file__).parent)
_aten = torch.ops.aten
_ANY_DEVICE = {_aten.copy_.default, _aten._to_copy.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_SCALAR_FROM_CPU = {_aten.where.self, _aten.masked_fill.Tensor, _aten.masked_fill_.Tensor, _aten.fill_.Tensor}
_WAITS = {  # results whose size or value the program has to know
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::bincount", "aten::equal", "torchvision::nms",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor that says it lies on the device; its values are those of `held`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        shape, layout = held.shape, {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, shape, **layout, dtype=held.dtype, device="meta")

    def __init__(self, held: Tensor) -> None:
        self.held = held

    in_torch = False  # torch's own functions, which may create tensors, are told the device that torch knows of
    device = property(lambda self: _META if OnDevice.in_torch else DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {}, None)

    def __repr__(self, **options: Any) -> str:
        return f"OnDevice({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy = OnDevice(self.held.detach().clone())
        return nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy


class _Generator(torch.Generator):
    """A generator on the CPU that knows which device it was asked for."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        self.asked_for = torch.device(device)


def _line() -> str:
    """Return the line of the package that is running."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    if frame is None:
        return "outside"
    return f"{Path(frame.f_code.co_filename).relative_to(_PACKAGE)} {frame.f_code.co_name}"


def _fault(func: Any, args: tuple, tensors: list[Tensor]) -> str | None:
    """Return why a GPU would refuse an operation on `tensors`, of which at least one lies on it."""
    others = [t for t in tensors if not isinstance(t, OnDevice)]
    if func in _ANY_DEVICE or not others:
        return None
    if func in _INDEXING and isinstance(args[0], OnDevice):
        others = [t for t in args[2:3] if not isinstance(t, OnDevice) and t.dim()]  # indices are copied
    elif torch.Tag.pointwise in func.tags or func in _SCALAR_FROM_CPU:
        others = [t for t in others if t.dim()]
    return f"{func}: tensors on {DEVICE} and on the CPU, {[tuple(t.shape) for t in others]}" if others else None


def _returned(func: Any, args: tuple, kwargs: dict, results: Any) -> Any:
    """Return results of an operation with the tensors that it changed in place in place of their copies."""
    names = [a.name for a in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    written = {tuple(a.alias_info.before_set): given.get(a.name) for a in func._schema.arguments
               if a.alias_info is not None and a.alias_info.is_write}  # fmt: skip
    several = results if isinstance(results, tuple) else (results,)
    changed = []
    for result, kind in zip(several, func._schema.returns, strict=False):
        key = tuple(kind.alias_info.before_set) if kind.alias_info is not None and kind.alias_info.is_write else None
        changed.append(written[key] if key is not None and written.get(key) is not None else result)
    return tuple(changed) if isinstance(results, tuple) else changed[0] if changed else results


def _run(func: Any, args: tuple, kwargs: dict, counts: "Device | None") -> Any:
    """Run an operation on the CPU; refuse what a GPU would, and wrap what lies on it."""
    flat = tree_flatten((args, kwargs))[0]
    tensors = [t for t in flat if isinstance(t, Tensor)]
    here = any(isinstance(t, OnDevice) for t in tensors)
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    if here and (fault := _fault(func, args, tensors)):
        raise RuntimeError(fault)
    to_device = here if asked is None else asked.type in ("meta", "cuda")
    if func is _aten.copy_.default:
        to_device = isinstance(args[0], OnDevice)
    if counts is not None:
        counts.count(func, args, here, to_device, tensors)
    if asked is not None and to_device:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is _aten._pin_memory.default:
        return args[0]
    bare = tree_map(lambda t: t.held if isinstance(t, OnDevice) else t, (args, kwargs))
    results = func(*bare[0], **bare[1])
    if func is _aten._to_copy.default and results is bare[0][0]:
        results = results.clone()
    if to_device and func is not _aten._local_scalar_dense.default:
        results = tree_map(lambda t: OnDevice(t) if isinstance(t, Tensor) else t, results)
    return _returned(func, args, kwargs, results)


_OF_GENERATORS = ("manual_seed", "get_state", "set_state", "seed", "initial_seed")


class _Devices(TorchFunctionMode):
    """Lets calls of torch name the device; counts tensors that are made of numbers there."""

    def __init__(self, copies: Counter[str]) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "new_tensor" and isinstance(args[0], OnDevice):
            kwargs, args, name = {"dtype": args[0].dtype, "device": DEVICE} | kwargs, args[1:], "tensor"
            func = torch.tensor
        here = any(isinstance(a, OnDevice) for a in args) or _is_device(kwargs.get("device"))
        for generator in (a for a in (*args, *kwargs.values()) if isinstance(a, _Generator)):
            if (generator.asked_for.type == "cuda") != here and name not in _OF_GENERATORS:
                raise RuntimeError(f"{name}: a generator on {generator.asked_for}, a tensor on another device")
        if name in ("tensor", "as_tensor") and _is_device(kwargs.get("device")) and not isinstance(args[0], Tensor):
            self.copies[_line()] += 1
            return on_device(func(*args, **{**kwargs, "device": "cpu"}))
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], _index(args[1]), *args[2:])
        if name == "is_pinned":
            return False
        if func is torch.device:
            return func(*args, **kwargs)
        args = tuple(_META if _is_device(a) else a for a in args)
        kwargs = {key: _META if _is_device(a) else a for key, a in kwargs.items()}
        outer, OnDevice.in_torch = OnDevice.in_torch, True
        try:
            return func(*args, **kwargs)
        finally:
            OnDevice.in_torch = outer


def _index(index: Any) -> Any:
    """Return an index with tensors in place of lists, which torch would create on `meta`, where they have no values."""
    if isinstance(index, tuple):
        return tuple(_index(part) for part in index)
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


def _is_device(value: Any) -> bool:
    """Return whether a value names the device."""
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )


def _submit(pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
    """Run work at once: what a thread does is not seen by the modes of another."""
    done: Future = Future()
    done.set_result(work(*arguments, **options))
    return done


class Device(TorchDispatchMode):
    """Within it, tensors can be moved to the device and created on it.

    Attributes
    ----------
    waits, copies : Counter
        How often each line of the package waited for the device, and copied a tensor to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._names, self._generator, self._submit = _Devices(self.copies), torch.Generator, ThreadPoolExecutor.submit

    def __enter__(self) -> "Device":
        boxes._constant.cache_clear()
        torch.Generator, ThreadPoolExecutor.submit = _Generator, _submit
        self._names.__enter__()
        return super().__enter__()

    def __exit__(self, *fault: Any) -> None:
        super().__exit__(*fault)
        self._names.__exit__(*fault)
        torch.Generator, ThreadPoolExecutor.submit = self._generator, self._submit
        boxes._constant.cache_clear()  # tensors on a GPU of this name, and those on this device, are not of one kind

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {}, self)

    def count(self, func: Any, args: tuple, here: bool, to_device: bool, tensors: list[Tensor]) -> None:
        """Count an operation that waits for the device, or copies to it."""
        masks = func in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        masks = masks and not (len(args) > 2 and args[2].dim() == 0)  # a masked fill
        if here and (not to_device or masks or func._schema.name in _WAITS):
            self.waits[f"{_line()} {func._schema.name.split('::')[1]}"] += 1
        elif to_device and tensors and any(not isinstance(t, OnDevice) and t.dim() for t in tensors):
            self.copies[_line()] += 1


class Gpu:
    """A GPU in place of the pretended device: PyTorch says itself where the program waits for it.

    `copies` stays empty: a copy from memory that is not pinned waits, and counts among `waits`.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self._heard = warnings.catch_warnings(record=True)

    def __enter__(self) -> "Gpu":
        self._heard.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._count
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *fault: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._heard.__exit__(*fault)

    def _count(self, message: Warning | str, *where: Any, **more: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            self.waits[_line()] += 1


DEVICES = [Device, Gpu][: 1 + torch.cuda.is_available()]
"""The device of which the tests run on every machine, and the GPU if there is one."""


def values(tensor: Tensor) -> Tensor:
    """Return the values of a tensor on either device, on the CPU."""
    return tensor.held if isinstance(tensor, OnDevice) else tensor.cpu()


def on_device(tensor: Tensor) -> OnDevice:
    """Return a tensor on the device."""
    return OnDevice(tensor.detach())


def move(module: nn.Module, device: type[Device | Gpu] = Device) -> nn.Module:
    """Move the weights and buffers of a module to the device, in place."""
    if device is Gpu:
        return module.to(DEVICE)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on_device(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_device(buffer)
    return module


def places(value: Any, name: str = "") -> dict[str, str]:
    """Return where the tensors of a record, list, tuple or dict lie, by name."""
    if isinstance(value, Tensor):
        return {name: str(value.device)}
    if is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in fields(value)]
    elif isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {}
    return {key: place for part, held in items for key, place in places(held, f"{name}.{part}").items()}
