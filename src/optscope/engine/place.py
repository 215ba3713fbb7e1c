"""A place says where and how a training's numbers are made: the device, its precision, threads, determinism."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optscope.devices import moved
from optscope.engine.plan import Plan
from optscope.engine.typed import typed_part
from optscope.errors import UserError
from optscope.tasks.task import InMemory, Task
from optscope.tasks.tree import Batch, leaves

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTOCAST = ("bfloat16", "float16")
SHARE = 4
"""A training part lies on an accelerator as a whole if it takes at most one in so many of the bytes free there."""
UNKNOWN = 2**30
"""The bytes that a training part may take on an accelerator which does not tell what is free."""


@dataclass(frozen=True)
class Place:
    """Where and how numbers are made, which belongs to a run's identity.

    Args:
        device: "cpu", or an accelerator that is there: "cuda", "cuda:1", "mps", ... "auto" becomes the accelerator
            if there is one, else "cpu". Which of several of one kind does not count for a run's identity.
        dtype: what floating-point numbers of the model and the data are turned into: one of "float32", "float64",
            "bfloat16", "float16". None: they stay what they are.
        threads: how many threads a CPU uses: another number gives other bits.
        deterministic: on an accelerator, take only kernels that give the same bits each time, and float32 products
            in full. On a CPU they do anyway.
        compile: compile the model by `torch.compile`; "try" goes on without where that fails, and says why.
        ranks: how many processes train one model together, each on its part of every batch, on as many accelerators
            of one kind. Sums in another order have other last bits, and dropout draws others.
        autocast: compute the model and the loss in "bfloat16" or "float16" where torch thinks that safe, with
            weights as they are; with "float16" losses are scaled, and a step whose gradient is not finite is left
            out.

    Raises:
        UserError: naming what is not there, or what cannot be together.
    """

    device: str = "cpu"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    threads: int = 1
    deterministic: bool = True
    compile: bool | Literal["try"] = False
    autocast: Literal["bfloat16", "float16"] | None = None
    ranks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", _found(self.device))
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"Place: dtype must be one of {', '.join(DTYPES)}, or None; got {self.dtype!r}")
        for name in ("threads", "ranks"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"Place: {name} must be a whole number >= 1; got {number!r}")
        if not isinstance(self.deterministic, bool):
            raise UserError(f"Place: deterministic must be True or False; got {self.deterministic!r}")
        if not isinstance(self.compile, bool) and self.compile != "try":
            raise UserError(f'Place: compile must be True, False or "try"; got {self.compile!r}')
        if self.autocast is not None and self.autocast not in AUTOCAST:
            raise UserError(f"Place: autocast must be {' or '.join(AUTOCAST)}, or None; got {self.autocast!r}")
        if self.autocast and self.dtype not in (None, "float32"):
            raise UserError(f"Place: autocast keeps weights in float32; got dtype={self.dtype!r} beside it: "
                            "give one of them")
        if self.ranks > 1 and self.accelerated:
            self._check_ranks()
        if self.kind == "mps" and self.dtype == "float64":
            raise UserError('Place: the device "mps" has no float64: give dtype="float32", or device="cpu"')
        if self.autocast and not torch.amp.autocast_mode.is_autocast_available(self.kind):
            raise UserError(f'Place: the device "{self.device}" has no autocast: give autocast=None, or dtype')

    def _check_ranks(self) -> None:
        there = torch.accelerator.device_count()
        if ":" in self.device:
            raise UserError(f'Place: {self.ranks} ranks take as many devices; got "{self.device}": give '
                            f'device="{self.kind}", or ranks=1')
        if self.ranks > there:
            raise UserError(f'Place: {self.ranks} ranks take as many devices, one each; there is {there} of '
                            f'"{self.kind}": give ranks={there}')

    @property
    def kind(self) -> str:
        """The kind of the device: "cpu", "cuda", "mps", ..."""
        return self.device.partition(":")[0]

    @property
    def numbers(self) -> str:
        """What makes other numbers of a model's and the data's own, as it is written, or ""."""
        if self.autocast is not None:
            return f"autocast={self.autocast!r}"
        return "" if self.dtype is None else f"dtype={self.dtype!r}"

    @property
    def accelerated(self) -> bool:
        """Whether it is no CPU, so that to read a number is to wait."""
        return self.kind != "cpu"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let its threads and its determinism hold in this process, and put back what was."""
        threads = torch.get_num_threads()
        if threads != self.threads:
            torch.set_num_threads(self.threads)
        try:
            with self._determinism() if self.accelerated else contextlib.nullcontext():
                yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    @contextlib.contextmanager
    def _determinism(self) -> Iterator[None]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
        before, options = torch.get_deterministic_debug_mode(), torch.utils.deterministic
        fill = options.fill_uninitialized_memory  # type: ignore[attr-defined]
        benchmark, products = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
        torch.set_deterministic_debug_mode("error" if self.deterministic else "default")
        options.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads such memory
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, not self.deterministic
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
            options.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, products

    def numerics(self) -> dict[str, str | int]:
        """Return what of this place, as it is here, fixes results: what is usual is left out, the threads apart."""
        found: dict[str, str | int] = {"threads": self.threads}
        usual = Place()
        for name in ("dtype", "compile", "autocast", "ranks"):
            if getattr(self, name) != getattr(usual, name):
                found[f"{name} of the place"] = str(getattr(self, name))
        if self.accelerated:
            found |= {"device": _described(torch.device(self.device)), "deterministic": str(self.deterministic)}
        return found

    def task(self, task: Task) -> Task:
        """Return the task as it is done here: its models and the loss's own tensors lie here, in the dtype.

        Its data have the dtype too; they stay on the CPU, from where examples are moved when they are used.
        """
        changed: dict[str, Any] = {}
        if self.dtype is not None:
            data = task.data()
            parts = {name: typed_part(part, DTYPES[self.dtype]) for name, part in vars(data).items()}
            changed["data"] = InMemory(replace(data, **parts))
        if self.dtype is None and not self.accelerated:
            return task
        return replace(task, **changed).remade(lambda make: Here(make, self, task.name), self._here)

    def _here(self, loss: Any) -> Any:
        """Return a loss whose own tensors lie here, where it is a module; others move what they hold themselves."""
        return self._put(copy.deepcopy(loss)) if isinstance(loss, nn.Module) else loss

    def _put(self, module: nn.Module) -> nn.Module:
        return module.to(self.device, DTYPES[self.dtype] if self.dtype else None)

    def moved(self, batch: Batch) -> Batch:
        """Return a batch on the device, without waiting for it."""
        return batch.mapped(self.sent) if self.accelerated else batch

    def sent(self, leaf: Tensor) -> Tensor:
        """Return a tensor on the device, without waiting for it."""
        pinned = leaf.pin_memory() if self.kind == "cuda" and leaf.device.type == "cpu" else leaf
        return moved(pinned, torch.device(self.device))

    def holds(self, batch: Batch) -> bool:
        """Return whether so many examples may lie on the accelerator as a whole."""
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves((batch.inputs, batch.targets)).values())
        try:
            free = torch.accelerator.get_memory_info(self.device)[0]
        except Exception:  # devices that do not tell raise what their authors chose
            return size <= UNKNOWN
        return bool(size * SHARE <= free)

    def model(self, model: nn.Module, owner: str) -> nn.Module:
        """Return a fresh model, moved here.

        Raises:
            UserError: when it lies on another device than this or the CPU, where models are made.
        """
        here = torch.device(self.device)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            index = {tensor.device.index, here.index} - {None}
            if tensor.device.type != "cpu" and (tensor.device.type != here.type or len(index) > 1):
                raise UserError(f"{owner}: {name} of its model lies on {tensor.device}, and the training is on "
                                f"{self.device}: let the factory return the model on the CPU, from where it is "
                                "moved, or train it on that device")
        return self._put(model) if self.accelerated or self.dtype else model


class MemoryShortError(UserError):
    """A device has not enough memory for a step; the sentence says what to try."""


@dataclass(frozen=True)
class Here:
    """A factory of models that lie at a place; they are made on the CPU, of the same random numbers everywhere."""

    make: Callable[[], nn.Module]
    place: Place
    owner: str

    def __call__(self) -> nn.Module:
        """Return a fresh model, moved."""
        return self.place.model(self.make(), self.owner)


@contextlib.contextmanager
def memory_told(owner: str, place: Place, plan: Plan) -> Iterator[None]:
    """Say of memory that is short on a device what to try.

    Raises:
        MemoryShortError: in the place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        now = plan.micro_batch or plan.batch
        smaller = (f"give micro_batch={max(1, now // 2)}, which takes the same gradient in parts" if now > 1
                   else "take a smaller model, or autocast")
        raise MemoryShortError(f"{owner}: {place.device} has not enough memory for {now} examples at once: "
                               f"{smaller}") from error


def available() -> tuple[str, ...]:
    """Return the names of the devices that are there, the CPU first."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return ("cpu",)
    count = torch.accelerator.device_count()
    return ("cpu", kind.type) if count < 2 else ("cpu", *(f"{kind.type}:{i}" for i in range(count)))


def devices_of(said: str) -> tuple[str, ...]:
    """Return the devices in a list such as "cuda:0,cuda:1", over which runs are spread.

    Raises:
        UserError: when one is not there or stands twice, or they are of several kinds, which give other numbers.
    """
    found = tuple(Place(name.strip()).device for name in said.split(","))
    if len({name.partition(":")[0] for name in found}) > 1 or len(set(found)) < len(found):
        raise UserError(f"runs are spread over different devices of one kind, such as cuda:0,cuda:1; got {said}")
    return found


def _found(device: object) -> str:
    """Return the name of a device that is there."""
    if device == "cpu":
        return "cpu"
    there = available()
    if device == "auto":
        return there[-1].partition(":")[0]
    kinds = {name.partition(":")[0] for name in there}
    try:
        asked = torch.device(device) if isinstance(device, str) else None
    except RuntimeError:
        asked = None
    numbers = range(1 if asked is None or asked.type == "cpu" else torch.accelerator.device_count())
    if asked is None or asked.type not in kinds or (asked.index or 0) not in numbers:
        raise UserError(f'Place: the device {device!r} is not there; there is {" and ".join(there)}, and "auto" is '
                        f'"{there[-1].partition(":")[0]}" here')
    return "cpu" if asked.type == "cpu" else str(device)


def _described(device: torch.device) -> str:
    """Return the kind of an accelerator, its name and its libraries, which together fix what it computes."""
    module = torch.get_device_module(device)
    name = module.get_device_name(device) if hasattr(module, "get_device_name") else platform.machine()
    versions = {"cuda": [torch.version.cuda, torch.backends.cudnn.version()], "mps": [platform.mac_ver()[0]]}
    return " ".join(map(str, [device.type, name, *versions.get(device.type, [])]))


CPU = Place()
