"""aim_fast: the bottleneck Adapter of AIM (Adapting Image Models), fused.

y = scale * row_scale * f(x) [+ x] [+ residual],  f(x) = act(x @ w1.T + b1) @ w2.T + b2
"""

from pathlib import Path

# An installation has the Triton kernels inside the package; a checkout has them beside it, and runs as it is.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "kernels" / "tiling.py").exists() and (_CHECKOUT / "pyproject.toml").exists():
    __path__.append(str(_CHECKOUT))

# ruff: noqa: E402, for the path comes first
from aim_fast.dispatch import Backend, Explanation, backends, use_backend
from aim_fast.functional import adapter, explain
from aim_fast.layers import QuickGELU
from aim_fast.module import Adapter, SAdapter2, T_Adapter, init_adapters
from aim_fast.patch_report import Report
from aim_fast.patching import patch, unpatch
from aim_fast.prepack import prepack
from aim_fast.reference import ACTIVATIONS

__version__ = "0.1.0"
__all__ = [
    "ACTIVATIONS",
    "Adapter",
    "Backend",
    "Explanation",
    "QuickGELU",
    "Report",
    "SAdapter2",
    "T_Adapter",
    "adapter",
    "backends",
    "explain",
    "init_adapters",
    "patch",
    "prepack",
    "unpatch",
    "use_backend",
]
