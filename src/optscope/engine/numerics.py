"""What fixes floating-point results besides the program: library, processor, and torch's own settings."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optscope.engine.place import CPU, Place
from optscope.errors import UserError

THREADS = 1
"""Threads a worker starts with; a run uses as many as its place says."""


def _flushes() -> bool:
    """Return whether numbers below the smallest normal one count as 0: torch tells no other way."""
    return float(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 1.0) == 0.0


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # None costs no look at every operation


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "device": (torch.get_default_device, _set_device),
    "deterministic": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "matmul": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "flush": (_flushes, torch.set_flush_denormal),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    "autocast dtype": (lambda: torch.get_autocast_dtype("cpu"),
                       lambda dtype: torch.set_autocast_dtype("cpu", dtype)),
    "anomaly": (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
                lambda both: torch.autograd.set_detect_anomaly(*both)),
    "onednn": (lambda: torch.backends.mkldnn.enabled, lambda on: torch.backends.mkldnn.set_flags(on)),
    "fast attention": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "flash attention": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
}
_USUAL = {"dtype": torch.float32, "device": torch.device("cpu"), "deterministic": 0, "matmul": "highest",
          "flush": False, "autocast": False, "autocast dtype": torch.bfloat16, "anomaly": (False, True),
          "onednn": True, "gradients": True, "fast attention": True, "flash attention": True}


def _set(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if _SETTINGS[name][0]() != value:
            _SETTINGS[name][1](value)


@dataclass(frozen=True)
class TorchSettings:
    """Torch's process-wide settings as they are, which a user's file may have changed.

    In the process that unpickles them they hold from then on: so they come first in what is sent to a worker, and
    a module that makes tensors when it is imported makes the same ones there.
    """

    values: Mapping[str, Any] = field(default_factory=lambda: {n: get() for n, (get, _) in _SETTINGS.items()})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _set(self.values)

    @contextlib.contextmanager
    def hold(self, place: Place = CPU) -> Iterator[None]:
        """Let them hold, and those of a place, whatever a user's module has set; then put back what was."""
        before = TorchSettings()
        _set(self.values)
        try:
            with place.hold():
                yield
        finally:
            _set(before.values)

    def numerics(self, place: Place = CPU) -> dict[str, str | int]:
        """Return all that fixes results at a place of this machine; what is not usual of settings but the dtype."""
        unusual = {name: str(value) for name, value in self.values.items() if value != _USUAL[name]}
        return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(),
                "machine": platform.machine(), "dtype": str(self.values["dtype"]), **unusual, **place.numerics()}


def numerics(place: Place = CPU) -> dict[str, str | int]:
    """Return what fixes floating-point results besides the program, as it is now."""
    return TorchSettings().numerics(place)


def check_numerics(owner: str, here: Mapping[str, str | int], named: Mapping[str, str | int]) -> None:
    """Raise unless the numerics of where a piece of work is done are those that it was named by.

    Raises:
        UserError: naming the first that is not so.
    """
    for name in (*named, *here):
        if here.get(name) != named.get(name):
            raise UserError(f"{owner}: a run was named where {name} is {named.get(name, 'as usual')}, and is done "
                            f"where it is {here.get(name, 'as usual')}, which gives other bits: run the command on "
                            "the kind of machine that does the work")
