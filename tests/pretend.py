"""A pretend accelerator for tests: tensors that say they are on device "pretend" and compute on the CPU.

`install()` registers the device with torch (2.9 or newer), once a process, before its first backward pass, which
counts the devices there are. Inside `pretending()`: `tensor.to("pretend")`, `torch.zeros(3, device="pretend")`,
`model.to("pretend")` work, autograd and torch.optim included; an operation that mixes pretend tensors with CPU
tensors of one or more dimensions raises RuntimeError, as a GPU would; and every value that is read back to Python
(`.item()`, `float`, `bool`, `.tolist()`, `.cpu()`, `.numpy()`) is counted in `reads`, by the line that read it, for
on a GPU each is a wait.
"""

from __future__ import annotations

import collections
import contextlib
import traceback
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_READING = ("_local_scalar_dense", "equal", "nonzero", "_unique2", "masked_select", "bincount",  # sizes are values
            "_linalg_eigh", "_linalg_svd", "linalg_cholesky_ex")  # and so is whether they have converged
reads: collections.Counter[str] = collections.Counter()
_installed = False


class _Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _Tensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, strides=inner.stride(), storage_offset=inner.storage_offset(),
            device=torch.device(NAME, 0))

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"pretend({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, object]) -> _Tensor:
        twin = _Tensor(self.inner.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            twin = torch.nn.Parameter(twin, requires_grad=self.requires_grad)
        if self.grad is not None:
            twin.grad = _Tensor(self.grad.inner.clone())
        memo[id(self)] = twin
        return twin

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """What builds or reads tensors without passing through dispatch goes by way of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            device = kwargs.pop("device", None)
            if func is torch.Tensor.new_tensor:
                kwargs.setdefault("dtype", args[0].dtype)
                device, func, args = device or args[0].device, torch.tensor, args[1:]
            if device is not None and torch.device(device).type == NAME:
                return func(*args, **kwargs).to(NAME)
            return func(*args, **kwargs, **({} if device is None else {"device": device}))
        if func == torch.Tensor.data.__set__ and isinstance(args[0], _Tensor):
            args[0].inner = args[1].inner
        if func is torch.Tensor.tolist and isinstance(args[0], _Tensor):
            reads[_here()] += 1
            return args[0].inner.tolist()
        return func(*args, **kwargs)


def _here() -> str:
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename != __file__]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "?"


def _leaves(x):
    if isinstance(x, (list, tuple)):
        for each in x:
            yield from _leaves(each)
    else:
        yield x


def _each(change, x):
    """Change what stands in lists and tuples, which is all that operations take and return."""
    return type(x)([_each(change, y) for y in x]) if isinstance(x, (list, tuple)) else change(x)


def _inner(x):
    return x.inner if isinstance(x, _Tensor) else x


def _run(func, args, kwargs):
    tensors = [x for x in _leaves((args, list(kwargs.values()))) if isinstance(x, torch.Tensor)]
    ours = any(isinstance(x, _Tensor) for x in tensors)
    if not ours and kwargs.get("device") is None:
        return func(*args, **kwargs)
    plain = any(not isinstance(x, _Tensor) and x.dim() > 0 for x in tensors)
    name = func._schema.name.partition("::")[2]
    moves = name in ("_to_copy", "copy_", "_copy_from")
    if ours and plain and not moves:
        raise RuntimeError(f"expected all tensors on one device, got pretend and cpu in {func}")
    here = ours
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        here = torch.device(kwargs["device"]).type == NAME
        kwargs["device"] = torch.device("cpu") if here else kwargs["device"]
    if ours and (name in _READING or (moves and not here)):
        reads[_here()] += 1
    if ours and name in ("index", "index_put", "index_put_"):  # a mask becomes places, and how many is a value
        reads[_here()] += sum(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
    out = func(*_each(_inner, args), **{key: _each(_inner, x) for key, x in kwargs.items()})
    if func._schema.is_mutable:
        returned = kwargs.get("out")
        if returned is not None:
            return returned
        return args[0] if func._schema.returns else None
    return _each(lambda x: _Tensor(x) if isinstance(x, torch.Tensor) else x, out) if here else out


def install() -> None:
    """Make the device known to torch; safe to call again.

    Rules of other authors are tried when they are made, with a backward pass: a script that has some calls this
    before it imports them, as `python pretend.py SCRIPT ...` does.
    """
    global _installed
    if not _installed:
        _setup_privateuseone_for_python_backend(NAME)
        _installed = True


@contextlib.contextmanager
def pretending() -> Iterator[None]:
    """Have a pretend device; `reads` starts empty."""
    install()
    reads.clear()
    with _Factories(), _Mode():
        yield


@contextlib.contextmanager
def unusable_default() -> Iterator[None]:
    """Have a default device that holds no values, where a user has a GPU: what is made without a device fails."""
    with torch.device("meta"):
        yield


if __name__ == "__main__":
    import runpy
    import sys

    import pretend

    pretend.install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
