"""Which modules look like an adapter, and what their parts are: by widths and classes, never by names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from aim_fast.layers import DROPOUTS, activation_name, is_plain, own_attributes
from aim_fast.plan import Path, frozen

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, type, type(lambda: 0), type(len))


class RefusedError(Exception):
    """Why a module that looks like an adapter is left as it is."""


def widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of an nn.Linear or of what stands for one (LoRA, quantized); None for any other module."""
    if isinstance(module, nn.Bilinear):
        return None
    into, out = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return (into, out) if isinstance(into, int) and isinstance(out, int) else None


def parts(module: nn.Module, path: Path = ()) -> Iterator[tuple[Path, nn.Module]]:
    """The children under every name, through containers: those come before what they hold."""
    for name, child in module._modules.items():
        if child is not None:
            yield (*path, name), child
            if type(child) in _CONTAINERS:
                yield from parts(child, (*path, name))


def linears(module: nn.Module) -> list[tuple[Path, nn.Module]]:
    """The Linears among the parts, each under its first name."""
    if widths(module):
        return []
    found: dict[int, tuple[Path, nn.Module]] = {}
    for path, part in parts(module):
        if widths(part):
            found.setdefault(id(part), (path, part))
    return [*found.values()]


def is_candidate(module: nn.Module) -> bool:
    """Whether two Linears among the parts go from D to H and from H to D; with H = D they have to be the only two."""
    sizes = [widths(part) for _, part in linears(module)]
    pairs = [(a, b) for i, a in enumerate(sizes) for b in sizes[i + 1 :] if a and b and a == b[::-1]]
    return any(a[0] != a[1] or len(sizes) == 2 for a, _ in pairs)


@dataclass
class Structure:
    """The parts of a candidate by what they are; `acts` and `scales` are those that may be the activation, the scale.

    widens: the Linear from H to D comes first, so that this may be no bottleneck between D and D at all.
    """

    down: Path
    up: Path
    D: int
    H: int
    widens: bool
    acts: list[Path] = field(default_factory=list)
    scales: list[Path] = field(default_factory=list)
    dropouts: list[Path] = field(default_factory=list)
    others: list[tuple[Path, type]] = field(default_factory=list)
    guards: list[tuple[Path, str, Any]] = field(default_factory=list)
    same: list[tuple[Path, Path]] = field(default_factory=list)


def copy_of(module: nn.Module) -> nn.Module:
    """A copy on the CPU in float64, without hooks, with plain Linears where the module has Linears of any class.

    Raises RefusedError if the module cannot be copied. The module itself is only read.
    """
    _refuse_at_sight(module)
    memo: dict[int, Any] = {}
    for path, linear in linears(module):
        into, out = widths(linear) or (0, 0)
        if not into or not out:
            raise RefusedError(f"{'.'.join(path)} has no weights yet; run the model once before")
        bias = getattr(linear, "bias", None) is not None
        memo[id(linear)] = skip_init(nn.Linear, into, out, bias, device="cpu", dtype=torch.float64)
    for part in module.modules():
        # deepcopy takes what stands in its memo for the copy: no hook comes along, nor what it holds.
        memo |= {id(value): OrderedDict() for name, value in part.__dict__.items() if name.endswith("_hooks") and value}
    try:
        copy = deepcopy(module, memo)
        if any(t.is_meta for t in (*copy.parameters(), *copy.buffers())):
            copy.to_empty(device="cpu")
        return copy.to("cpu", torch.float64)
    except Exception as error:  # whatever the class of others raises
        raise RefusedError(f"it cannot be copied ({type(error).__name__}: {error})") from error


def _refuse_at_sight(module: nn.Module) -> None:
    """Refuse what holds more than two Linears and a scale: a whole block of a network is not worth a copy."""
    more = linears(module)[2:]
    if more:
        raise RefusedError(f"it holds a third Linear ({'.'.join(more[0][0])})")
    for path, part in parts(module):
        if type(part) not in _CONTAINERS and not widths(part) and len([*part.parameters(), *part.buffers()]) > 1:
            raise RefusedError(_foreign(path, part))


def _foreign(path: Path, part: nn.Module) -> str:
    return f"it holds a {type(part).__name__} ({'.'.join(path)}), which the operator does not know"


def structure(copy: nn.Module) -> Structure:
    """Sort the parts of a copy made by `copy_of`. Raises RefusedError for a part that the operator does not know."""
    (down, first), (up, second) = [(path, widths(part) or (0, 0)) for path, part in linears(copy)]
    if widens := first[1] > first[0]:
        down, up, first = up, down, second
    found = Structure(down, up, *first, widens, scales=_numbers(copy, (), first[0]))
    found.guards = guards_of(copy, ())
    seen: dict[int, Path] = {}
    for path, part in parts(copy):
        if id(part) in seen:
            found.same.append((seen[id(part)], path))
            continue
        seen[id(part)] = path
        if path not in (down, up):
            _sort(found, path, part)
    return found


def _sort(found: Structure, path: Path, part: nn.Module) -> None:
    name = ".".join(path)
    if not is_plain(part):
        raise RefusedError(f"{name} has a forward of its own")
    if type(part) in DROPOUTS:
        found.dropouts.append(path)
    elif type(part) in _CONTAINERS:
        found.others.append((path, type(part)))
    elif activation_name(part) is not None:
        found.acts.append(path)
    elif not part._modules and len(part._parameters) == 1 and (scales := _numbers(part, path, found.D)):
        found.scales += scales
        found.others.append((path, type(part)))
        found.guards += guards_of(part, path)
    else:
        raise RefusedError(_foreign(path, part))


def _numbers(module: nn.Module, path: Path, D: int) -> list[Path]:
    """The parameters, buffers and numbers of a module itself that have the shape of a scale."""
    tensors = {**module._parameters, **module._buffers, **plain_tensors(module)}
    shaped = [n for n, t in tensors.items() if t is not None and t.is_floating_point() and t.numel() in (1, D)]
    numbers = [n for n, value in _settings(module).items() if type(value) in (int, float)]
    return [(*path, name) for name in (*shaped, *numbers)]


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a module holds without calling them parameters or buffers."""
    return {name: value for name, value in own_attributes(module).items() if isinstance(value, Tensor)}


def _settings(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module and of its classes that cannot change unseen: its forward may read any of them."""
    classes = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    of_classes = {n: v for kind in reversed(classes) for n, v in vars(kind).items() if not n.startswith("__")}
    found = {name: value for name, value in of_classes.items() if not callable(value)} | own_attributes(module)
    return {name: frozen(value) for name, value in found.items() if _is_simple(value)}


def guards_of(module: nn.Module, path: Path) -> list[tuple[Path, str, Any]]:
    return [(path, name, value) for name, value in _settings(module).items()]


def _is_simple(value: Any) -> bool:
    if type(value) in (tuple, list, dict):
        return all(map(_is_simple, [*value, *value.values()] if isinstance(value, dict) else value))
    return type(value) in _SIMPLE or isinstance(value, Enum)
