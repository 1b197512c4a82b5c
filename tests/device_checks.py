"""The checks that a device needs before anything is timed on it, without pytest; gpu_check.py runs them.

    AIM_FAST_TEST_DEVICE=cuda AIM_FAST_TEST_BACKEND=triton python tests/device_checks.py numeric repeat graph

numeric: the error budget. repeat: the same bits from run to run.
graph: a forward and a train step, captured in a CUDA graph, give on new values the bits that plain calls give.
thread: a thread whose first call of CUDA this is, as autograd's can be, gives the same bits.
calls: one forward and backward of each small regime and nothing else, for a sanitizer to watch.

A line per failure, and one at the end that counts, also after a signal to stop. Exit status: 0; 1 when a check failed;
130 when the run was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import aim_fast
from judge import BACKEND, DEVICE, TRAINABLE, Tensors, all_placed, evaluate, is_refusal, judge, placed
from numeric_cases import CASES, build

# Real widths in each dtype, a few rows and many, ragged sizes, each way of laying rows out, the exact GELU.
ESSENTIAL = (
    "image_bf16",
    "image_fp16",
    "image",
    "one_row",
    "one_row_bf16",
    "seven_bf16",
    "tail_bf16",
    "tail",
    "gelu_fp32",
    "sam_h_bf16",
    "dinov2",
    "h196_fp16",
    "prime_ragged",
    "prime_ragged_bf16",
    "odd_pairs_bf16",
    "transposed_residual",
    "transposed_bf16",
    "padded_fp16",
    "expanded_dy_bf16",
    "sample_scale_bf16",
    "token_scale",
    "no_bias_bf16",
    "long_bf16",
)
REPEATED = ("image_bf16", "tail", "tail_bf16", "prime_ragged_fp16", "scale_one", "long")
CAPTURED = ("image_bf16", "tail_fp16", "prime_ragged", "sample_scale")
SMALL = (
    "one_row_bf16",
    "seven_bf16",
    "image_bf16",
    "seven_ragged_fp16",
    "prime_ragged",
    "prime_ragged_bf16",
    "odd_pairs_bf16",
    "h196_fp16",
    "few_ragged",
    "transposed_three_bf16",
    "scale_one",
)
# --cases -> the regimes of numeric, and those of repeat.
REGIMES = {
    "small": (SMALL, SMALL),
    "essential": (ESSENTIAL, REPEATED),
    "all": (tuple(dict.fromkeys((*ESSENTIAL, *CASES))), REPEATED),
}
REPEATS = 10

Check = tuple[str, Callable[[], None]]  # its name, and what raises AssertionError or anything else when it fails
Capture = Callable[[Callable[[], list[Tensor]]], tuple[list[Tensor], Callable[[], None]]]


def assert_budget(name: str) -> None:
    tensors, dy, options = build(CASES[name])
    judge(tensors, dy, **options)


def assert_same_bits(name: str) -> None:
    tensors, dy, options = build(CASES[name])
    first = evaluate(aim_fast.adapter, tensors, dy, **options)
    for turn in range(1, REPEATS):
        again = evaluate(aim_fast.adapter, tensors, dy, **options)
        different = [key for key, value in first.items() if not torch.equal(value, again[key])]
        assert not different, f"other bits in {', '.join(different)} at run {turn}"


def assert_in_new_thread(name: str) -> None:
    tensors, _, options = build(CASES[name])
    here: Tensors = {key: t if t is None else placed(t).detach() for key, t in tensors.items()}

    def call() -> Tensor:
        with torch.no_grad(), aim_fast.use_backend(BACKEND):
            return aim_fast.adapter(**here, **options)

    expected = call()
    # To fill new memory would be a call of CUDA before the one that counts.
    deterministic: Any = torch.utils.deterministic
    fill, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    try:
        with ThreadPoolExecutor(1) as pool:
            there = pool.submit(call).result()
    finally:
        deterministic.fill_uninitialized_memory = fill
    assert torch.equal(there, expected), "other bits in the thread"


def call_once(name: str) -> None:
    tensors, dy, options = build(CASES[name])
    evaluate(aim_fast.adapter, tensors, dy, **options)


def captured(step: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
    """The outputs of step in a CUDA graph, and what replays it. One call comes before, on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return outputs, replay


def assert_captured(name: str, gradients: bool, capture: Capture = captured) -> None:
    """A replay on new values of x gives what a plain call gives on them, in every bit."""
    tensors, dy, options = build(CASES[name])
    leaves: Tensors = {key: None if t is None else t.detach() for key, t in all_placed(tensors).items()}
    trained = [t.requires_grad_() for key, t in leaves.items() if gradients and key in TRAINABLE and t is not None]
    dy = placed(dy)

    def step() -> list[Tensor]:
        with torch.set_grad_enabled(gradients):
            y = aim_fast.adapter(**leaves, **options)
            # A copy, since the gradient of the residual may be this very tensor, and outputs are written over below.
            return [y, *torch.autograd.grad(y, trained, dy.to(y.dtype).clone())] if gradients else [y]

    outputs, replay = capture(step)
    with torch.no_grad():
        leaves["x"].copy_(leaves["x"].flip(0) * 0.5)
        for t in outputs:
            t.detach().fill_(torch.nan)
    expected = [t.detach().clone() for t in step()]
    replay()
    different = [i for i, (a, b) in enumerate(zip(outputs, expected, strict=True)) if not torch.equal(a, b)]
    assert not different, f"the replay differs in results {different} of (y, gradients)"


def checks(kinds: Sequence[str], regimes: str) -> Iterator[Check]:
    """The checks of these kinds, in the order given."""
    cases: dict[str, tuple[Callable[[str], None], Sequence[str]]] = {
        "numeric": (assert_budget, REGIMES[regimes][0]),
        "repeat": (assert_same_bits, REGIMES[regimes][1]),
        "thread": (assert_in_new_thread, REPEATED[:1]),
        "calls": (call_once, SMALL),
    }
    for kind in kinds:
        if kind == "graph":
            for name, gradients in itertools.product(CAPTURED, (False, True)):
                label = f"graph {name} {'train' if gradients else 'forward'}"
                yield label, partial(assert_captured, name, gradients)
        else:
            check, names = cases[kind]
            for name in names:
                yield f"{kind} {name}", partial(check, name)


@dataclass
class Count:
    """What came of a run: checks done, failures (a line each), calls the backend does not take, checks not begun.

    stopped: the check in which a signal ended the run.
    """

    done: int = 0
    failures: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left: int = 0
    stopped: str = ""

    def __str__(self) -> str:
        refused = f", {len(self.refused)} beyond its limits ({', '.join(self.refused)})" if self.refused else ""
        stopped = f", stopped in {self.stopped} for want of time" if self.stopped else ""
        late = f", {self.left} not begun for want of time" if self.left else ""
        return f"{self.done} checks of {BACKEND} on {DEVICE}, {len(self.failures)} failed{refused}{stopped}{late}"


def must_be_taken(name: str, backend: str = BACKEND) -> bool:
    """Whether a refusal is a failure: what is essential, and for the CUDA kernels is within the limits of their row."""
    if backend != "cuda":
        return name in ESSENTIAL
    case = CASES[name]
    half = case.dtype.itemsize == 2
    least = 8 if half else 4
    return name in ESSENTIAL and case.shape[-1] % least == case.H % least == 0 and (case.H <= 256 or not half)


def run(todo: Sequence[Check], within: float) -> Count:
    """Run checks until `within` seconds are over, or a signal stops them."""
    start = time.monotonic()
    count = Count()
    for done, (label, check) in enumerate(todo):
        count.left = len(todo) - done
        if time.monotonic() - start > within:
            break
        count.left -= 1
        try:
            check()
            count.done += 1
        except KeyboardInterrupt:
            count.stopped = label
            break
        except Exception as error:
            case = label.split()[1]
            if is_refusal(error) and not must_be_taken(case):
                count.refused.append(case)
                continue
            count.done += 1
            text = str(error).strip() or "no text"
            count.failures.append(
                f"{label}: {'' if isinstance(error, AssertionError) else type(error).__name__ + ': '}{text}"
            )
            print(f"FAILED {count.failures[-1]}", flush=True)
    return count


def stop(*_: object) -> None:
    """A signal ends the run once; the next ones find it counting."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=["numeric", "repeat", "graph", "thread", "calls"])
    parser.add_argument("--cases", choices=REGIMES, default="essential", help="of numeric and repeat")
    parser.add_argument("--within", type=float, default=float("inf"), metavar="SECONDS", help="begin none after that")
    options = parser.parse_args(argv)
    todo = list(checks(options.kinds, options.cases))
    # On a GPU torch then fills what it allocates with NaN: an element that nobody writes shows.
    if DEVICE != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
    with aim_fast.use_backend(BACKEND):
        count = run(todo, options.within)
    print(count, flush=True)
    return 1 if count.failures else 130 if count.stopped else 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.exit(main())
