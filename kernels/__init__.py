"""Triton kernels of the operator, installed as `aim_fast.kernels`. They know nothing of autograd, nor of dispatch."""

if __name__ != "aim_fast.kernels":
    raise ImportError(f"these are the kernels of aim_fast, imported as {__name__!r}; use `import aim_fast.kernels`")
