"""The name that `optscope.protocol` had at first: what was written for it goes on, and is told the new one."""

import sys
import warnings
from importlib import import_module

for _name in ("arms", "search", "settings", "comparison"):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"optscope.protocol.{_name}")
warnings.warn("optscope.study is called optscope.protocol now", DeprecationWarning, stacklevel=2)
