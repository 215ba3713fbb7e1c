"""The name that `optscope.protocol` had at first: what was written for it goes on, and is told the new one."""

import sys
from importlib import import_module

from optscope.former import told

for _name in ("arms", "search", "settings", "comparison"):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"optscope.protocol.{_name}")
told("optscope.study", "optscope.protocol", last="0.1", depth=2)
