"""Mends Triton's interpreter (3.6 to 3.9): without this its results in bf16 are wrong, and nothing says so.

Call `mend` in a process with TRITON_INTERPRET=1, before the first kernel runs.
"""

from __future__ import annotations

from typing import Any


def start() -> None:
    """Make this process, which has TRITON_INTERPRET=1, one to run kernels in: mended, and new memory full of NaN."""
    import torch

    mend()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    fill_new_memory(True)


def fill_new_memory(fill: bool) -> None:
    """Whether new tensors are full of NaN."""
    from torch.utils import deterministic

    vars(deterministic)["fill_uninitialized_memory"] = fill


def mend() -> None:
    """Make tl.dot multiply bf16 values and not their bits, round fp32 to bf16 to nearest even, and allow loop bounds
    that are arguments of a kernel under numpy 2.4."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast, patch_tensor = builder.create_dot, builder.cast_impl, interpreter._patch_lang_tensor

    def widened(t: Any) -> Any:
        """The values of a bf16 tensor, which the interpreter keeps as the upper halves of fp32."""
        return (t.data.astype(np.uint32) << 16).view(np.float32) if t.dtype.scalar == tl.bfloat16 else t.data

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if tl.bfloat16 not in (a.dtype.scalar, b.dtype.scalar):
            return dot(self, a, b, d, *rest)
        product = np.matmul(widened(a), widened(b), dtype=np.float32)
        return handle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, src, dst_type)
        bits = np.ascontiguousarray(src.data).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return handle(np.where(np.isnan(src.data), np.uint16(0x7FC0), rounded), tl.bfloat16)

    store, load = builder.create_masked_store, builder.create_masked_load

    def of_bools(mask: Any) -> Any:
        """A mask as 3.6 has it; 3.9 makes int32 of two that are joined by &, and refuses that beside 16-bit values."""
        return handle(mask.data.astype(np.bool_), tl.int1)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        return store(self, ptrs, value, of_bools(mask), *rest)

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        return load(self, ptrs, of_bools(mask), *rest)

    builder.create_masked_store, builder.create_masked_load = masked_store, masked_load

    def patch_lang_tensor(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(np.asarray(self.handle.data).reshape(()))

    patch_lang = interpreter._patch_lang
    patched: set[int] = set()  # namespaces that are patched while the present kernel runs

    def patch_lang_of_kernel(function: Any) -> Any:
        patched.clear()
        return patch_lang(function)

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        """A helper within a kernel. Patching Triton's language at every such call is most of the interpreter's time."""
        namespace = id(self.fn.__globals__)
        if namespace not in patched:
            patch_lang(self.fn)
            patched.add(namespace)
        return self.rewrite()(*arguments, **keywords)

    interpreter._patch_lang, interpreter.InterpretedFunction.__call__ = patch_lang_of_kernel, call
    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    interpreter._patch_lang_tensor = patch_lang_tensor
