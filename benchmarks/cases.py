"""The workloads: shapes at which public code bases run this adapter. Data only; `harness.select` expands the modes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One call of the operator: x [M, D], bottleneck H.

    modes: "fp32" (everything fp32), "half" (everything bf16 or fp16), "amp" (fp32 tensors under half autocast).
    x_grad: whether x needs a gradient. strided: x comes transposed over its two leading dimensions.
    """

    name: str
    M: int
    D: int
    H: int
    modes: tuple[str, ...]
    skip: bool
    source: str
    activation: str = "gelu"
    scale: float = 1.0
    residual: bool = False
    x_grad: bool = True
    strided: bool = False


FP32, HALF, AMP, BOTH = ("fp32",), ("half",), ("amp",), ("fp32", "half")

CASES = (
    Case("aim_b_8f", 12608, 768, 192, HALF, True, "AIM ViT-B/16, 8 frames, 8 clips"),
    Case("aim_b_8f_mlp", 12608, 768, 192, AMP, False, "MLP_Adapter of the same", scale=0.5, residual=True),
    Case("aim_b_8f_tin", 12608, 768, 192, AMP, True, "T_Adapter_in of the same, Something-Something v2"),
    Case("aim_b_32f", 50432, 768, 192, HALF, True, "AIM ViT-B/16, 32 frames"),
    Case("aim_l_8f", 16448, 1024, 256, HALF, True, "AIM ViT-L/14, 8 frames"),
    Case("aim_l_32f", 65792, 1024, 256, HALF, False, "AIM ViT-L/14, 32 frames, T_Adapter"),
    Case("aim_b_eval", 18912, 768, 192, BOTH, True, "AIM ViT-B/16, Kinetics-400 test views"),
    Case("aim_b_tail", 1576, 768, 192, BOTH, True, "last chunk of an evaluation"),
    Case("swin_s1", 401408, 128, 32, HALF, False, "AIM Swin-B stage 1, T_Adapter", x_grad=False),
    Case("swin_s2", 100352, 256, 64, HALF, True, "AIM Swin-B stage 2"),
    Case("swin_s3", 25088, 512, 128, HALF, True, "AIM Swin-B stage 3"),
    Case("swin_s4", 6272, 1024, 256, AMP, False, "AIM Swin-B stage 4", scale=0.5),
    Case("sam_b_window", 156800, 768, 192, FP32, True, "Medical-SAM-Adapter ViT-B, windows"),
    Case("sam_b_small", 1024, 768, 192, FP32, False, "the same at 256 px", scale=0.5),
    Case("sam_h_window", 9800, 1280, 320, HALF, True, "Medical-SAM-Adapter ViT-H, windows", x_grad=False),
    Case("decoder_keys", 4096, 256, 64, FP32, True, "SAM decoder adapter, image tokens", strided=True),
    Case("decoder_queries", 7, 256, 64, FP32, True, "the same module, few tokens"),
    Case("dinov2_l", 4112, 1024, 512, FP32, True, "place recognition", activation="relu"),
    Case("adaptformer", 25216, 768, 64, HALF, False, "AdaptFormer", activation="relu", scale=0.1, residual=True),
    Case("one_image", 197, 768, 192, BOTH, True, "ViT-B/16, one image"),
)

# One per regime, small enough that all of them fit in two minutes on two cores.
QUICK = (
    "aim_b_8f",
    "aim_b_8f_mlp",
    "aim_b_tail",
    "swin_s3",
    "sam_b_small",
    "decoder_keys",
    "decoder_queries",
    "dinov2_l",
    "adaptformer",
    "one_image",
)
