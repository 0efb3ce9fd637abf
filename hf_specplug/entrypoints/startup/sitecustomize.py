"""Python runs this file when it starts, in programs that `specplug run` starts."""

import importlib
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.curdir) != _HERE]

try:
    from hf_specplug.entrypoints import program
except ImportError:
    pass  # another Python, without hf-specplug
else:
    program.prepare()

# this file stands in for the environment's own
_self = sys.modules.pop("sitecustomize")
try:
    importlib.import_module("sitecustomize")
except ImportError as error:
    if error.name != "sitecustomize":
        raise
finally:
    sys.modules.setdefault("sitecustomize", _self)
