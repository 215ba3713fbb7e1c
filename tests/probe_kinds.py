"""Every kind of probe that optscope has: a new one stands in all tables of tests with its default settings."""

import importlib
import pkgutil
from collections.abc import Iterable

from optscope import probes
from optscope.probes.probe import Probe


def concrete(kind: type[Probe]) -> set[type[Probe]]:
    """The kinds below one that measure, itself included."""
    below = {each for sub in kind.__subclasses__() for each in concrete(sub)}
    own = set() if getattr(kind, "__abstractmethods__", None) else {kind}
    return {each for each in own | below if each.__module__.startswith("optscope.")}


def others(named: Iterable[str]) -> tuple[Probe, ...]:
    """Those that are not named, by their defaults: one whose settings have none needs a row in the table."""
    for info in pkgutil.iter_modules(probes.__path__):
        importlib.import_module(f"optscope.probes.{info.name}")
    left = {kind.__name__: kind for kind in concrete(Probe)}
    return tuple(left[name]() for name in sorted(left.keys() - set(named)))
