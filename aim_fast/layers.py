"""What the layers inside an adapter compute: known activations, and Linears that do no more than nn.Linear."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as torch_module

from aim_fast.reference import ACTIVATIONS, activate


class QuickGELU(nn.Module):
    """z * sigmoid(1.702 z), elementwise: CLIP's GELU."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(1.702 * z)


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_OF_CLASS: dict[type, Callable[[Any], str | None]] = {
    nn.GELU: lambda act: "gelu" if act.approximate == "none" else "gelu_tanh",
    nn.LeakyReLU: lambda act: "leaky_relu" if act.negative_slope == 0.01 else None,
    nn.ReLU: lambda act: "relu",
    nn.SiLU: lambda act: "silu",
    nn.Tanh: lambda act: "tanh",
    nn.Identity: lambda act: "identity",
    QuickGELU: lambda act: "quick_gelu",
}
# What classes of others turned out to compute, by class and by all that an instance holds.
_tried: dict[Any, str | None] = {}
# The last two stand for a tensor while torch.export traces.
_PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)
# What every module holds; the rest is its own.
_MACHINERY = frozenset(nn.Module().__dict__)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes that a module holds beside its parameters, buffers, children and hooks."""
    return {name: value for name, value in module.__dict__.items() if name not in _MACHINERY}


def activation_name(act: nn.Module) -> str | None:
    """The operator's name for an activation module, or None when it has to run by itself.

    Only exact classes count, since a subclass may compute anything; so do hooks, which make a module its own. A class
    that the operator does not know, such as the QuickGELU that most code bases define, is tried once, on numbers.
    """
    if has_hooks(act) or "forward" in act.__dict__:
        return None
    known = _OF_CLASS.get(type(act))
    return known(act) if known else _name_of_stranger(act)


def _name_of_stranger(act: nn.Module) -> str | None:
    if act._parameters or act._buffers:
        return None
    children = tuple((name, activation_name(child)) for name, child in act.named_children())
    if any(name is None for _, name in children):
        return None
    key = (type(act), tuple(own_attributes(act).items()), children)
    try:
        if key not in _tried:
            if torch.compiler.is_compiling():  # numbers are for another time
                return None
            _tried[key] = _name_by_numbers(act)
        return _tried[key]
    except TypeError:  # an attribute that cannot be hashed, so may change unseen
        return None


def _name_by_numbers(act: nn.Module) -> str | None:
    """Which activation gives the same values, in training and out of it; identity is left to nn.Identity.

    A layer that drops or gates is the identity now and then.
    """
    near = torch.linspace(-8, 8, 65, dtype=torch.float64, device="cpu")
    z = torch.cat([near, 16 * near])  # far out too: some clip
    modes = [(module, module.training) for module in act.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            values = [act.train(mode)(z.clone()) for mode in (True, False)]
    except Exception:  # whatever a class of others raises: it is no activation
        return None
    finally:
        for module, mode in modes:
            module.training = mode
    if not all(isinstance(y, Tensor) and y.shape == z.shape for y in values):
        return None
    for name in ACTIVATIONS:
        expected = activate(z, name)
        if name != "identity" and all(torch.allclose(y.double(), expected, rtol=1e-6, atol=1e-6) for y in values):
            return name
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook runs when the module is called, or in its backward: its own, or one for all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        # torch 2.6 cannot be asked for all of these at once
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module runs the forward of its class and nothing else."""
    return not has_hooks(module) and "forward" not in module.__dict__


def is_plain_linear(linear: nn.Module) -> bool:
    """Whether calling `linear` does nothing but x @ weight.T + bias with the parameters it holds."""
    return type(linear) is nn.Linear and is_plain(linear) and is_plain_tensor(linear.weight)


def is_idle_dropout(module: nn.Module) -> bool:
    """Whether calling the module is the identity, as dropout is outside training or with probability zero."""
    return type(module) in DROPOUTS and is_plain(module) and not (module.training and module.p)


def is_plain_tensor(t: Tensor) -> bool:
    """Whether the operator takes t: quantized tensors and others with a class of their own run as written."""
    if type(t) in _PLAIN_TENSORS:
        return True
    distributed = sys.modules.get("torch.distributed.tensor")  # imported once somebody has made one
    return distributed is not None and isinstance(t, distributed.DTensor)
