"""What an adapter computes, read off its results: activation, scale, what is added, what is returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from aim_fast.functional import MAX_DIMS
from aim_fast.layers import activation_name
from aim_fast.plan import Form, Path, Plan, Result, Skip, descendant
from aim_fast.probe import RANKS, Call, Key, Probe, same
from aim_fast.recognition import RefusedError, guards_of
from aim_fast.reference import ACTIVATIONS, activate

Results = Tensor | tuple[Tensor, ...]  # of a forward


def identify(probe: Probe) -> Plan:
    """The plan that the forward's results in evaluation mode suggest, for every form that it takes.

    Raises RefusedError if none does; the text says what the forward does instead, where that can be told.
    """
    key, rank = _first_call(probe)
    found = _found(probe, key, rank, drawn=True) or _found(probe, key, rank, drawn=False)
    if found is None:
        raise RefusedError(_difference(probe, key, rank))
    activation, scale = found
    parts = probe.parts
    act = next((path for path in parts.acts if _is_used(probe, path, key, rank, scale)), None)
    for path, value in probe.attributes.items():
        if value == scale and _form(probe, key, rank, activation, path):
            scale = path
    unused = [(path, part) for path in parts.acts if path != act and (part := descendant(probe.copy, path))]
    guards = [*parts.guards, *(guard for path, part in unused for guard in guards_of(part, path))]
    forms = tuple(form for key in probe.keys if (form := _form(probe, key, rank, activation, scale)))
    if not forms:  # what explained one call does not explain the next
        raise RefusedError(_difference(probe, key, rank))
    return Plan(
        names=probe.names,
        positional=probe.positional,
        forms=forms,
        down=parts.down,
        up=parts.up,
        act=act,
        activation=activation,
        scale=scale,
        dropouts=tuple(parts.dropouts),
        others=(*parts.others, *((path, type(part)) for path, part in unused)),
        guards=tuple(guard for guard in guards if (*guard[0], guard[1]) != scale),
        same=tuple(parts.same),
        ranks=frozenset(range(1, MAX_DIMS + 1)),
        training=True,
    )


def _first_call(probe: Probe) -> tuple[Key, int]:
    """The first form and number of dimensions that the forward takes at all."""
    failure = ""
    for key in probe.keys:
        for rank in RANKS:
            try:
                probe.run(probe.call(key, rank))
                return key, rank
            except RefusedError:
                raise
            except Exception as error:  # whatever a forward of others raises
                failure = failure or f"{type(error).__name__}: {error}".splitlines()[0]
    if probe.parts.widens:
        raise RefusedError(f"it widens {probe.parts.H} to {probe.parts.D}: no bottleneck")
    raise RefusedError(f"its forward fails on a small input ({failure})")


def _found(probe: Probe, key: Key, rank: int, drawn: bool) -> tuple[str, float | Path] | None:
    """The activation and the scale that explain one call.

    drawn: the float attributes are random, so that the scale shows itself as one of them; else as they are, when any
    number that fits is the scale for as long as they stay.
    """
    floats = [path for path, value in probe.attributes.items() if isinstance(value, float)] if drawn else ()
    call, results = _ask(probe, key, rank, floats)
    held = [activation_name(part) for path in probe.parts.acts if (part := descendant(probe.copy, path))]
    for activation in dict.fromkeys((*filter(None, held), *ACTIVATIONS)):
        for scale, _ in _explanations(probe, call, key, results, activation, probe.parts.scales if drawn else None):
            return activation, scale
    return None


def _form(probe: Probe, key: Key, rank: int, activation: str, scale: float | Path) -> Form | None:
    """The form of calls with this key under an activation and a scale that are known; None if they explain nothing."""
    call, results = _ask(probe, key, rank, () if isinstance(scale, float) else (scale,))
    found = _explanations(probe, call, key, results, activation, (scale,))
    return next((form for used, form in found if used == scale), None)


def _is_used(probe: Probe, path: Path, key: Key, rank: int, scale: float | Path) -> bool:
    """Whether a child is the activation: with another one in its place, the forward follows."""
    part, owner = descendant(probe.copy, path), descendant(probe.copy, path[:-1])
    names = [name for name, child in probe.copy.named_modules(remove_duplicate=False) if child is part]
    assert part is not None
    assert owner is not None
    other, stand_in = ("relu", nn.ReLU()) if activation_name(part) == "tanh" else ("tanh", nn.Tanh())
    try:
        for name in names:
            probe.copy.set_submodule(name, stand_in)
        return _form(probe, key, rank, other, scale) is not None
    finally:
        for name in names:
            probe.copy.set_submodule(name, part)


def _ask(probe: Probe, key: Key, rank: int, attributes: Iterable[Path]) -> tuple[Call, Results | None]:
    """One call with all weights drawn and these attributes too; None if the forward does not take it."""
    probe.draw()
    probe.draw_attributes(attributes)
    call = probe.call(key, rank)
    try:
        return call, probe.run(call)
    except RefusedError:
        raise
    except Exception:  # whatever a forward of others raises, of an argument or an attribute that does not suit it
        return call, None


def _branch(probe: Probe, x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """h = act(down(x)) and f = up(h), by the copy's weights."""
    down, up = (descendant(probe.copy, path) for path in (probe.parts.down, probe.parts.up))
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    h = activate(F.linear(x, down.weight, down.bias), activation).detach()
    return h, F.linear(h, up.weight, up.bias).detach()


def _explanations(
    probe: Probe,
    call: Call,
    key: Key,
    results: Results | None,
    activation: str,
    scales: Iterable[float | Path] | None,
) -> Iterator[tuple[float | Path, Form]]:
    """The scales, and forms by which f explains the results: 1 and those of `scales`, or with None whatever fits."""
    if results is None:
        return
    all_results = results if isinstance(results, tuple) else (results,)
    y, x = all_results[0].detach(), call.x.detach()
    if y.shape != x.shape or y.dtype is not x.dtype:
        return
    h, f = _branch(probe, x, activation)
    tensors: dict[int | None, Tensor | float] = {None: 0.0, **{i: t.detach() for i, t in call.tensors.items()}}
    for skip, residual in [(skip, i) for i in tensors for skip in Skip]:
        rest = y - tensors[residual] - (x if skip is Skip.X else 0.0)
        base = f + x if skip is Skip.SCALED else f
        if scales is None:
            best = float(f"{((rest * base).sum() / base.square().sum()).item():.12g}")
            candidates: list[float | Path] = [best] if abs(best) > 1e-6 else []
        else:
            candidates = [*dict.fromkeys((1.0, *scales))]
        for scale in candidates:
            value = scale if isinstance(scale, float) else probe.value(scale)
            if (skip is Skip.SCALED and (scale == 1.0 or residual is not None)) or not same(rest, value * base):
                continue
            kinds = _kinds(all_results, {Result.Y: y, Result.BRANCH: value * f, Result.HIDDEN: h})
            if kinds:
                yield scale, Form(key, skip, residual, kinds if isinstance(results, tuple) else None)


def _kinds(results: tuple[Tensor, ...], known: dict[Result, Tensor]) -> tuple[Result, ...]:
    """What each of the results is; empty if one is nothing known."""
    kinds = [next((kind for kind, value in known.items() if same(y.detach(), value)), None) for y in results]
    return () if None in kinds else tuple(kind for kind in kinds if kind)


def _difference(probe: Probe, key: Key, rank: int) -> str:
    """What the forward does that the operator does not, as far as one call tells."""
    call, results = _ask(probe, key, rank, ())
    y = results[0] if isinstance(results, tuple) else results
    if y is None:
        return "its forward fails now and then"
    y, x = y.detach(), call.x.detach()
    if y.shape != x.shape:
        return f"its forward returns {list(y.shape)} for an x of {list(x.shape)}"
    if y.dtype is not x.dtype:
        return f"its forward returns {y.dtype} for an x of {x.dtype}"
    if same(y, x) or not y.any():
        return "its forward discards the branch"
    if any(isinstance(value, Tensor) for value in call.rest):
        return f"its forward takes a second input ({', '.join(probe.names[1:])}) and does more than add it"
    for path in probe.parts.acts:
        part = descendant(probe.copy, path)
        name = activation_name(part) if part else None
        if name and any(same(y, activate(_branch(probe, x, name)[1], name) + skip) for skip in (0.0, x)):
            return "its forward applies the activation a second time, after the up-projection"
    return "its forward computes something else than the operator"
