"""Drop-in modules: the constructors, child names, `state_dict` keys and results of AIM's adapters.

Source: AIM (Yang et al., ICLR 2023), its `Adapter` for ViT and `Adapter`, `SAdapter2`, `T_Adapter` for Swin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from aim_fast.functional import adapter
from aim_fast.layers import activation_name, is_plain_linear


class _Bottleneck(nn.Module):
    """act(D_fc1(x)) then D_fc2, x added when `_skip()` says so; children in AIM's order: act, D_fc1, D_fc2."""

    def __init__(self, D_features: int, mlp_ratio: float, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        hidden = int(D_features * mlp_ratio)
        self.act = act_layer()
        self.D_fc1 = nn.Linear(D_features, hidden)
        self.D_fc2 = nn.Linear(hidden, D_features)
        activation_name(self.act)  # a class of others is tried now, not while the first call is compiled

    def _skip(self) -> bool:
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        *,
        scale: float | Tensor = 1.0,
        row_scale: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """y = scale * row_scale * f(x) [+ x] [+ residual] for x [..., D]; the keywords as in `aim_fast.adapter`.

        A child with hooks, a parametrization or of another class, or an activation the operator does not know, runs as
        written: the children one by one.
        """
        down, up = self.D_fc1, self.D_fc2
        name = activation_name(self.act)
        if name is not None and is_plain_linear(down) and is_plain_linear(up):
            return adapter(
                x,
                down.weight,
                down.bias,
                up.weight,
                up.bias,
                activation=name,
                skip=self._skip(),
                scale=scale,
                row_scale=row_scale,
                residual=residual,
            )
        y = up(self.act(down(x)))
        y = y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)
        if row_scale is not None:
            y = y * row_scale.to(y.dtype).unsqueeze(-1)
        if self._skip():
            y = x + y
        return y if residual is None else y + residual


class Adapter(_Bottleneck):
    """AIM's bottleneck adapter: `x + D_fc2(act(D_fc1(x)))`, without `x +` when skip_connect is false.

    Args:
        D_features: width D of the input.
        mlp_ratio: the hidden width is `int(D_features * mlp_ratio)`.
        act_layer: any callable that makes a module. nn.GELU (both kinds), ReLU, SiLU, Tanh, LeakyReLU, Identity and
            `aim_fast.QuickGELU` are fused; any other runs eager.
        skip_connect: whether x is added; read at every call.

    The call takes x [..., D] of any floating dtype and returns a tensor of x's shape (dtype as in `aim_fast.adapter`).
    """

    def __init__(
        self,
        D_features: int,
        mlp_ratio: float = 0.25,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        skip_connect: bool = True,
    ) -> None:
        super().__init__(D_features, mlp_ratio, act_layer)
        self.skip_connect = skip_connect

    def _skip(self) -> bool:
        return bool(self.skip_connect)


class SAdapter2(_Bottleneck):
    """AIM's Swin spatial adapter: always `x + f(x)`; arguments as in `Adapter`, no `skip_connect`."""

    def __init__(self, D_features: int, mlp_ratio: float = 0.25, act_layer: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(D_features, mlp_ratio, act_layer)

    def _skip(self) -> bool:
        return True


class T_Adapter(_Bottleneck):
    """AIM's Swin temporal adapter: always `f(x)` alone; arguments as in `Adapter`, no `skip_connect`."""

    def __init__(self, D_features: int, mlp_ratio: float = 0.25, act_layer: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(D_features, mlp_ratio, act_layer)

    def _skip(self) -> bool:
        return False


@torch.no_grad()
def init_adapters(model: nn.Module) -> None:
    """AIM's initialisation, in place, over a whole model before its pretrained weights are loaded.

    Every nn.Linear gets trunc_normal(std 0.02) weights and zero biases, every nn.LayerNorm weight 1 and bias 0; then
    the `D_fc2` of every module under a name with `S_Adapter`, `T_Adapter` or `MLP_Adapter` becomes zero, so that
    training starts from the frozen backbone's function.
    """
    draw = partial(nn.init.trunc_normal_, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            if module.weight is not None:
                module.weight.fill_(1.0)
            if module.bias is not None:
                module.bias.zero_()
    for name, module in model.named_modules():
        starts_at_zero = any(key in name for key in ("S_Adapter", "T_Adapter", "MLP_Adapter"))
        if starts_at_zero and isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] == "D_fc2":
            module.weight.zero_()
            if module.bias is not None:
                module.bias.zero_()
