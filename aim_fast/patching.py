"""`patch` and `unpatch`: the adapters of a model that others wrote run the fused operator, as the objects they are.

A taken module gets a class made for it, a subclass of its own under the same name, whose `forward` runs the operator
and falls back to the module's. Nothing else changes: no attribute, parameter, child or hook, so that references,
checkpoints and optimizers keep their meaning, and a copy of any kind is fused by itself. A `forward` set on the
instance would hold the module that it was made for, so that shallow copies and data-parallel replicas would run on the
original's weights; a hook cannot replace a forward.

A class made at run time cannot be found by its name, so instances say how to make it again: `__reduce_ex__` gives the
original class and the plan. That serves pickle, torch.save and copy alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from aim_fast.module import _Bottleneck
from aim_fast.patch_report import Report, Row
from aim_fast.plan import Plan, descendant, fused, unmet
from aim_fast.recognition import RefusedError, is_candidate, parts
from aim_fast.verification import make_plan

_ORIGINAL = "_aim_fast_original"  # attribute of a fused class: the module's own class
_PLAN = "_aim_fast_plan"


_classes: dict[tuple[type[nn.Module], Plan], type[nn.Module]] = {}


def _fused_class(original: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """The subclass of a class that runs this plan; one for all modules that share both."""
    key = (original, plan)
    if key not in _classes:
        _classes[key] = _make_class(original, plan)
    return _classes[key]


def _make_class(original: type[nn.Module], plan: Plan) -> type[nn.Module]:
    own_forward: Callable[..., Any] = original.forward

    @functools.wraps(own_forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = fused(plan, self, args, kwargs)
        return own_forward(self, *args, **kwargs) if result is NotImplemented else result

    def reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
        reduced: Any = super(made, self).__reduce_ex__(max(2, protocol))
        make, args, *rest = reduced
        own_args = tuple(original if arg is made else arg for arg in args)
        return (_fused_again, (plan, make, own_args), *rest)

    names = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    namespace = {**names, "forward": forward, "__reduce_ex__": reduce, _ORIGINAL: original, _PLAN: plan}
    metaclass: Any = type(original)
    made: type[nn.Module] = metaclass(original.__name__, (original,), namespace)
    return made


def _fused_again(plan: Plan, make: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    """A module that was patched when it was copied or stored, before it gets its state."""
    module = make(*args)
    if not _is_patched(module):
        module.__class__ = _fused_class(type(module), plan)
    return module


def _is_patched(module: nn.Module) -> bool:
    return _ORIGINAL in type(module).__dict__


def patched_linears(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The two Linears of a patched module, down and up; None for any other module."""
    plan = getattr(type(module), _PLAN, None)
    if plan is None:
        return None
    down, up = descendant(module, plan.down), descendant(module, plan.up)
    return None if down is None or up is None else (down, up)


def patch(model: nn.Module, verify: bool = True, dry_run: bool = False) -> Report:
    """Let the adapters inside a model run the fused operator, without a change to the model's code.

    An adapter is any module with two Linears, from D to H <= D and back, whose forward the operator can stand for. That
    is found out on a copy with random weights, never by names; the model, its hooks and the random state are not
    touched. Each taken module stays the object it is: isinstance, hooks, `state_dict`, `.to`, deepcopy, pickle and
    torch.save work as before, and copies are fused too. Weights, biases, scale, activation and training mode are read
    at every call. A call runs as its author wrote it while a Linear has hooks, a parametrization or another class
    (LoRA, quantized), while dropout is active, and with arguments or attributes that have not been tried.

    What a forward reads outside its module, globals and the fields of a configuration, is taken as it is now: patch
    again after changing it. Patch before `torch.compile`, DDP and FSDP. To load a stored model, aim_fast has to be
    installed; `unpatch` before storing lifts that.

    Args:
        model: any module, itself an adapter or not.
        verify: hold results and gradients against the operator, in training mode too, for x of 1 to 5 dimensions, and
            cover the calls that agree. Without it, the results for one small input decide for all calls.
        dry_run: report, and change nothing.

    Returns:
        A `Report` of every module that looks like an adapter: its path, whether it was taken, and why. Print it.
    """
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    taken: list[tuple[nn.Module, Plan]] = []
    rows: list[Row] = []
    _survey(model, paths, verify, set(), taken, rows)
    if not dry_run:
        for module, plan in taken:
            module.__class__ = _fused_class(type(module), plan)
    order = {path: i for i, (path, _) in enumerate(model.named_modules())}
    return Report(tuple(sorted(rows, key=lambda row: order[row.path])), dry_run)


def _survey(
    module: nn.Module,
    paths: dict[int, list[str]],
    verify: bool,
    seen: set[int],
    taken: list[tuple[nn.Module, Plan]],
    rows: list[Row],
) -> bool:
    """Add a row for each candidate at or below module; whether there was one. The outermost that fits is taken."""
    if id(module) in seen:
        return False
    seen.add(id(module))
    path, *aliases = paths[id(module)]
    kind = type(module).__name__

    def report(is_taken: bool, why: str) -> bool:
        rows.append(Row(path, kind, is_taken, why, tuple(aliases)))
        return True

    if isinstance(module, _Bottleneck):
        return report(False, "it is aim_fast's own, and fused already")
    if hasattr(type(module), _ORIGINAL):
        return report(False, "it has been patched before")
    refusal = ""
    if is_candidate(module):
        try:
            plan = make_plan(module, verify)
        except RefusedError as error:
            refusal = str(error)
        else:
            seen.update(id(part) for _, part in parts(module))
            taken.append((module, plan))
            return report(True, plan.formula() + _for_now(plan, module))
    # A list, so that every child is looked at.
    inner = [_survey(child, paths, verify, seen, taken, rows) for child in module.children()]
    if refusal and not any(inner):
        return report(False, refusal)
    return any(inner)


def _for_now(plan: Plan, module: nn.Module) -> str:
    """What keeps a taken module eager as it is now, unless the formula says so already."""
    reason = unmet(plan, module)
    return f"; eager while {reason}" if reason and (plan.training or not module.training) else ""


def unpatch(model: nn.Module) -> tuple[str, ...]:
    """Give every patched module in a model its own class back, in place.

    Args:
        model: what `patch` was given, a part of it, or a copy.

    Returns:
        The paths of the modules that were restored.

    Raises:
        ValueError: a patched module has been given another class on top since (a parametrization, FSDP); nothing is
            changed then.
    """
    patched = [(path, module) for path, module in model.named_modules() if hasattr(type(module), _ORIGINAL)]
    for path, module in patched:
        if not _is_patched(module):
            raise ValueError(
                f"unpatch: {path or 'the model'} is a {type(module).__name__}, made from the patched class; expected "
                "the patched class itself; take the parametrization or wrapper off first"
            )
    for _, module in patched:
        module.__class__ = getattr(type(module), _ORIGINAL)
    return tuple(path for path, _ in patched)
