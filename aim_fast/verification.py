"""The plan of a module, held against it: results and gradients of a copy with random weights, by both.

Zero-initialised weights prove nothing, and names tell nothing: what the forward gives is all that counts.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from aim_fast.dispatch import use_backend
from aim_fast.identification import identify
from aim_fast.plan import Form, Plan, descendant, fused
from aim_fast.probe import RANKS, Probe, same
from aim_fast.recognition import RefusedError
from aim_fast.reference import no_autocast


def make_plan(module: nn.Module, verify: bool) -> Plan:
    """The plan for a candidate. The module, the random state and the autocast and grad modes are left alone.

    verify: hold results and gradients of the operator against the module's, in both modes, for x of 1 to 5 dimensions,
    and cover what agrees; without it the results for one small input decide for all.

    Raises:
        RefusedError: the operator does not give what the module's forward gives; the text says why.
    """
    if isinstance(module, (torch.fx.GraphModule, torch.jit.ScriptModule)):
        raise RefusedError("its forward is generated code (torch.fx or TorchScript)")
    if "forward" in module.__dict__:
        raise RefusedError("it has a forward of its own on the instance")
    with _undisturbed():
        try:
            probe = Probe(module)
            plan = identify(probe)
            return _verified(probe, plan) if verify else plan
        except RefusedError:
            raise
        except Exception as error:  # a class of others may refuse anything
            raise RefusedError(f"it cannot be tried ({type(error).__name__}: {error})") from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    state = random.getstate()
    hooks = {name: value for name, value in vars(torch_module).items() if name.startswith("_global_")}
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        no_autocast("cpu"),
        use_backend("auto"),
    ):
        torch.manual_seed(0)
        random.seed(0)
        try:
            for name in hooks:  # those for all modules; their handles know the dicts themselves
                setattr(torch_module, name, OrderedDict())
            yield
        finally:
            for name, value in hooks.items():
                setattr(torch_module, name, value)
            random.setstate(state)


def _verified(probe: Probe, plan: Plan) -> Plan:
    """The plan for as many dimensions and modes as agree. Raises RefusedError if none do."""
    for path in plan.dropouts:
        dropout = descendant(probe.copy, path)
        assert dropout is not None
        dropout.p = 0.0  # type: ignore[assignment]  # an active one is left to the module
    _draw(probe, plan)
    faults = {rank: next(filter(None, (_fault(probe, plan, form, rank) for form in plan.forms)), "") for rank in RANKS}
    ranks = frozenset(rank for rank, fault in faults.items() if not fault)
    if not ranks:
        raise RefusedError(next(iter(faults.values())))
    if not _keeps_autocast(probe, plan, next(iter(ranks))):
        raise RefusedError("its forward turns autocast off for its Linears")
    probe.copy.train()
    _draw(probe, plan)
    training = not any(_fault(probe, plan, form, rank) for form in plan.forms for rank in ranks)
    return replace(plan, ranks=ranks, training=training)


def _draw(probe: Probe, plan: Plan) -> None:
    probe.draw()
    probe.draw_attributes(() if isinstance(plan.scale, float) else (plan.scale,))


def _fault(probe: Probe, plan: Plan, form: Form, rank: int) -> str:
    """How the operator's results or gradients differ from the forward's for one random call; empty if they agree."""
    call = probe.call(form.key, rank)
    try:
        theirs = probe.run(call)
        ours = fused(plan, probe.copy, *call.arguments())
        if ours is NotImplemented:
            return "the operator does not take it"
        pairs = [*zip(_listed(ours), _listed(theirs), strict=True)]
        if not all(same(a, b) for a, b in pairs):
            return "its results differ from the operator's"
        leaves = {"x": call.x, **{probe.names[1 + i]: t for i, t in call.tensors.items()}}
        leaves |= dict(probe.copy.named_parameters())
        dys = [torch.randn_like(a) for a, _ in pairs]
        grads = [_gradients(results, dys, leaves) for results in zip(*pairs, strict=True)]
    except RefusedError as refused:
        return str(refused)
    except Exception as error:  # whatever a forward of others raises
        return f"its forward fails on a small input ({type(error).__name__}: {error})"
    wrong = [name for name in leaves if not same(grads[0][name], grads[1][name])]
    return f"the gradient of {wrong[0]} differs from the operator's" if wrong else ""


def _keeps_autocast(probe: Probe, plan: Plan, rank: int) -> bool:
    """Whether the Linears run under the caller's autocast; tensors in float64 themselves are never cast."""
    seen: list[bool] = []
    linears = [descendant(probe.copy, path) for path in (plan.down, plan.up)]
    for device in ("cpu", "cuda"):
        hook = partial(_note_autocast, device, seen)
        handles = [linear.register_forward_pre_hook(hook) for linear in linears if linear is not None]
        before = torch.is_autocast_enabled(device)
        torch.set_autocast_enabled(device, True)
        try:
            probe.run(probe.call(plan.forms[0].key, rank))
        finally:
            torch.set_autocast_enabled(device, before)
            for handle in handles:
                handle.remove()
    return all(seen)


def _note_autocast(device: str, seen: list[bool], *_: object) -> None:
    seen.append(torch.is_autocast_enabled(device))


def _listed(results: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [*results]


def _gradients(results: tuple[Tensor, ...], dys: list[Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Zero where a leaf is not reached; float leaves only."""
    differentiable = [(y, dy) for y, dy in zip(results, dys, strict=True) if y.requires_grad]
    wanted = [t for t in leaves.values() if t.requires_grad]
    ys, weights = zip(*differentiable, strict=True) if differentiable else ((), ())
    found = torch.autograd.grad(ys, wanted, weights, allow_unused=True) if ys else [None] * len(wanted)
    grads = dict(zip(map(id, wanted), found, strict=True))
    return {name: t.new_zeros(t.shape) if (g := grads.get(id(t))) is None else g for name, t in leaves.items()}
