"""The benchmark as a tool: what it measures, what it refuses, what it writes. No timings."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bench_adapter
import devices
import harness
import memory
import report
from cases import CASES, QUICK, Case
from harness import Step, select

BRIEF = ["--seconds", "0.01", "--rivals", "eager"]

# name, M, D, H, modes, skip, then what differs from gelu, scale 1, no residual, x with grad, contiguous
TABLE: list[tuple[str, int, int, int, tuple[str, ...], bool, dict[str, Any]]] = [
    ("aim_b_8f", 12608, 768, 192, ("half",), True, {}),
    ("aim_b_8f_mlp", 12608, 768, 192, ("amp",), False, {"scale": 0.5, "residual": True}),
    ("aim_b_8f_tin", 12608, 768, 192, ("amp",), True, {}),
    ("aim_b_32f", 50432, 768, 192, ("half",), True, {}),
    ("aim_l_8f", 16448, 1024, 256, ("half",), True, {}),
    ("aim_l_32f", 65792, 1024, 256, ("half",), False, {}),
    ("aim_b_eval", 18912, 768, 192, ("fp32", "half"), True, {}),
    ("aim_b_tail", 1576, 768, 192, ("fp32", "half"), True, {}),
    ("swin_s1", 401408, 128, 32, ("half",), False, {"x_grad": False}),
    ("swin_s2", 100352, 256, 64, ("half",), True, {}),
    ("swin_s3", 25088, 512, 128, ("half",), True, {}),
    ("swin_s4", 6272, 1024, 256, ("amp",), False, {"scale": 0.5}),
    ("sam_b_window", 156800, 768, 192, ("fp32",), True, {}),
    ("sam_b_small", 1024, 768, 192, ("fp32",), False, {"scale": 0.5}),
    ("sam_h_window", 9800, 1280, 320, ("half",), True, {"x_grad": False}),
    ("decoder_keys", 4096, 256, 64, ("fp32",), True, {"strided": True}),
    ("decoder_queries", 7, 256, 64, ("fp32",), True, {}),
    ("dinov2_l", 4112, 1024, 512, ("fp32",), True, {"activation": "relu"}),
    ("adaptformer", 25216, 768, 64, ("half",), False, {"activation": "relu", "scale": 0.1, "residual": True}),
    ("one_image", 197, 768, 192, ("fp32", "half"), True, {}),
]


def test_table_is_the_design() -> None:
    expected = [Case(n, M, D, H, modes, skip, "", **rest) for n, M, D, H, modes, skip, rest in TABLE]
    found = [Case(**{**vars(case), "source": ""}) for case in CASES]
    assert found == expected
    assert all(case.source for case in CASES)
    assert set(QUICK) <= {case.name for case in CASES}


@pytest.mark.parametrize(
    ("patterns", "dtypes", "expected"),
    [
        (["one_image"], ["fp32", "bf16"], ["one_image fp32", "one_image bf16"]),
        (["aim_b_8f_*"], ["bf16", "fp32"], ["aim_b_8f_mlp bf16 amp", "aim_b_8f_tin bf16 amp"]),
        (["swin_s4"], ["fp32"], []),
        (["swin_s[12]"], ["fp16"], ["swin_s1 fp16", "swin_s2 fp16"]),
        (["one_image", "*"], ["fp32"], [f"{row[0]} fp32" for row in TABLE if "fp32" in row[4]]),
    ],
)
def test_selection(patterns: list[str], dtypes: list[str], expected: list[str]) -> None:
    assert [str(workload) for workload in select(patterns, dtypes)] == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--cases", "vit_g"], "--cases vit_g matches no case; expected names or globs of aim_b_8f"),
        (["--dtypes", "fp8"], "--dtypes fp8 is unknown; expected some of fp32, bf16, fp16"),
        (["--pass", "sideways"], "--pass sideways is unknown; expected some of forward, backward, train"),
        (["--rivals", "jax"], "--rivals jax is unknown; expected some of eager, compile, autotune"),
        (["--device", "cuda"], "--device cuda: torch sees no GPU"),
        (["--threads", "0"], "--threads is 0; expected 1 or more"),
        (["--json", "/dev/null/folder/a.json"], "Not a directory"),
        (["--cases", "sam_b_window", "--dtypes", "bf16"], "these cases have none of these dtypes"),
    ],
)
def test_bad_arguments(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench_adapter.main(arguments)
    assert exit_.value.code == 2
    assert text in capsys.readouterr().err


def wrong_formula(case: Case) -> harness.Rival:
    right = harness.eager(case)
    return lambda x, w1, b1, w2, b2, residual: right(x, w1, b1, w2, torch.zeros_like(b2), residual) + 0 * b2


def wrong_last_row(case: Case) -> harness.Rival:
    right = harness.eager(case)

    def call(x: Tensor, *rest: Tensor | None) -> Tensor:
        y = right(x, *rest)
        return torch.cat([y[:-1], 1.01 * y[-1:]])

    return call


def wrong_dx(case: Case) -> harness.Rival:
    right = harness.eager(case)
    return lambda x, *rest: right(x, *rest) - x + x.detach()


def one_row_missing_in_dw1(case: Case) -> harness.Rival:
    right = harness.eager(case)

    def call(x: Tensor, w1: Tensor, *rest: Tensor | None) -> Tensor:
        middle = len(x) // 2
        parts = [(x[:middle], w1), (x[middle : middle + 1], w1.detach()), (x[middle + 1 :], w1)]
        return torch.cat([right(rows, weight, *rest) for rows, weight in parts])

    return call


@pytest.mark.parametrize(
    ("fault", "kind", "named"),
    [
        (wrong_formula, "forward", "y:"),
        (wrong_last_row, "forward", "y:"),
        (wrong_dx, "train", "dx:"),
        (one_row_missing_in_dw1, "backward", "dw1:"),
    ],
)
def test_refuses_to_time_a_wrong_kernel(
    fault: Callable[[Case], harness.Rival],
    kind: str,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def timed(*_: Any) -> None:
        raise AssertionError("a wrong kernel was timed")

    monkeypatch.setattr(harness, "fused", fault)
    monkeypatch.setattr(harness, "interleave", timed)
    file = tmp_path / "rows.json"
    status = bench_adapter.main(["--cases", "sam_b_small", "--pass", kind, "--json", str(file), *BRIEF])
    written = json.loads(file.read_text())
    assert status == 1
    assert written["rows"] == []
    assert len(written["problems"]) == 1
    assert f"sam_b_small fp32 {kind}: wrong, not timed: fused: {named} error" in written["problems"][0]
    assert written["problems"][0] in capsys.readouterr().out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One small real run with a JSON and a picture."""
    folder = tmp_path_factory.mktemp("bench")
    file, picture = folder / "rows.json", folder / "picture.png"
    output = ["--json", str(file), "--plot", str(picture)]
    cases = ["--cases", "decoder_queries,sam_b_small", "one_image", "--pass", "forward,train"]
    assert bench_adapter.main([*cases, *output, *BRIEF]) == 0
    return {"file": file, "picture": picture, "rows": json.loads(file.read_text())["rows"]}


def test_rows_tell_everything(results: dict[str, Any]) -> None:
    rows = results["rows"]
    labels = [f"{row['name']} {row['dtype']} {row['pass']}" for row in rows]
    cases = ["sam_b_small fp32", "decoder_queries fp32", "one_image fp32", "one_image bf16"]
    assert labels == [f"{case} {kind}" for case in cases for kind in ("forward", "train")]
    for row in rows:
        assert set(row["machine"]) == {"cpu", "cores", "isa"}
        assert set(row["versions"]) == {"torch", "aim_fast", "python"}
        assert set(row["commit"]) == {"hash", "dirty"}
        assert row["threads"] == torch.get_num_threads()
        assert row["date"].startswith("20")
        assert row["backend"] in ("cpu", "eager")
        assert row["rounds"] >= harness.MIN_ROUNDS
        assert set(row["us"]) == {"fused", "eager"}
        assert row["host_us"] == {}
        assert all(0 < spread["p25"] <= spread["median"] <= spread["p75"] for spread in row["us"].values())
        medians = {name: spread["median"] for name, spread in row["us"].items()}
        assert math.isclose(row["speedup"]["eager"], medians["eager"] / medians["fused"])
        assert math.isclose(row["gflops"], row["gflop"] / medians["fused"] * 1e6)
        assert row["roof"]["gflops"] > 0
        assert row["roof"]["gbps"] > 0
        assert row["roof"]["share"] > 0
        wanted = {"y"} if row["pass"] == "forward" else {"y", "dx", "dw1", "db1", "dw2", "db2"}
        assert set(row["errors"]) == wanted
        assert all(error["ok"] and error["error"] <= error["allowed"] for error in row["errors"].values())
        assert set(row["peak_mib"]) == {"fused", "eager"}
        assert set(row["saved_mib"]) == (set() if row["pass"] == "forward" else {"fused", "eager"})


def test_rows_tell_the_host_time_where_it_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The median over the sets of inputs, of each rival."""
    device = replace(devices.DEVICES["cpu"], host_seconds=lambda steps: [2e-6, 3e-6, 9e-6])
    monkeypatch.setitem(devices.DEVICES, "cpu", device)
    file = tmp_path / "rows.json"
    assert bench_adapter.main(["--cases", "decoder_queries", "--pass", "forward", "--json", str(file), *BRIEF]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["host_us"] == pytest.approx({"fused": 3.0, "eager": 3.0})


def test_picture_is_a_png(results: dict[str, Any]) -> None:
    data = results["picture"].read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 500
    assert height > 200


def test_markdown_goes_between_the_markers(results: dict[str, Any], tmp_path: Any) -> None:
    document = tmp_path / "README.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        assert report.main([str(results["file"]), "--into", str(document)]) == 0
        text = document.read_text()
        assert text.startswith(f"before\n{report.BEGIN}\n")
        assert text.endswith(f"\n{report.END}\nafter\n")
        assert "old" not in text
        assert text.count("| decoder_queries | 7, 256, 64 | fp32 |") == 1
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(list(group)) for _, group in itertools.groupby(line.count("|") for line in tables)]
    assert sum(widths) == len(tables)
    assert len(widths) == 2


def test_markdown_needs_the_markers(results: dict[str, Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "README.md"
    document.write_text("no markers\n")
    assert report.main([str(results["file"]), "--into", str(document)]) == 1
    assert "needs the markers" in capsys.readouterr().err
    assert document.read_text() == "no markers\n"


def test_summary_names_losses_and_leaves_small_cases_out_of_the_mean() -> None:
    def row(name: str, M: int, ratio: float) -> report.Row:
        shared = {"dtype": "fp32", "amp": False, "pass": "train", "threads": 2}
        return {"name": name, "M": M, "speedup": {"eager": ratio}, **shared}

    text = "\n".join(report.summary([row("a", 1000, 4.0), row("b", 2000, 1.0), row("c", 7, 0.5), row("d", 7, 0.98)]))
    assert "fp32 train    2 threads  2.00 (2 cases)   worst 0.50 c fp32" in text
    assert "faster in 1 of 4, slower in 1:\n    0.50 c fp32 train, 2 threads" in text


def test_interruption_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = harness.interleave, itertools.count()

    def interleave(steps: dict[str, list[Step]], seconds: float, device: str) -> dict[str, list[float]]:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(steps, seconds, device)

    monkeypatch.setattr(harness, "interleave", interleave)
    file = tmp_path / "rows.json"
    assert bench_adapter.main(["--cases", "decoder_queries", "--json", str(file), *BRIEF]) == 130
    assert [row["pass"] for row in json.loads(file.read_text())["rows"]] == ["forward"]
    assert "interrupted" in capsys.readouterr().out


def test_a_rival_that_fails_is_named_and_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def broken(*_: Tensor | None) -> Tensor:
        raise RuntimeError("no compiler here\nmore")

    monkeypatch.setitem(harness.RIVALS, "compile", lambda case: broken)
    file = tmp_path / "rows.json"
    arguments = ["--cases", "decoder_queries", "--seconds", "0.01", "--rivals", "eager,compile", "--json", str(file)]
    assert bench_adapter.main(arguments) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["failed"] for row in rows] == [{"compile": "RuntimeError: no compiler here"}] * 2
    assert "compile failed: RuntimeError: no compiler here" in report.line(rows[0], ["eager", "compile"])


def test_a_rival_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setitem(harness.RIVALS, "compile", wrong_formula)
    file = tmp_path / "rows.json"
    arguments = ["--cases", "decoder_queries", "--seconds", "0.01", "--rivals", "eager,compile", "--json", str(file)]
    assert bench_adapter.main(arguments) == 0
    for row in json.loads(file.read_text())["rows"]:
        assert row["failed"]["compile"].startswith("wrong, not timed: y: error")
        assert set(row["us"]) == {"fused", "eager"}


def test_what_there_is_no_time_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_adapter.main(["--cases", "decoder_queries,one_image", "--within", "-1", *BRIEF]) == 0
    assert capsys.readouterr().out.count("left out, no time left within -1 s") == 3


def test_the_quick_one_begins_with_the_least_work() -> None:
    names = [workload.case.name for workload in bench_adapter.parse(["--quick"]).workloads]
    assert (names[0], names[-1]) == ("decoder_queries", "dinov2_l")


def test_too_large_a_case_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    assert bench_adapter.main(["--cases", "aim_b_tail", *BRIEF]) == 0
    assert "aim_b_tail fp32: left out, needs about" in capsys.readouterr().out


def test_forced_backend_runs(tmp_path: Any) -> None:
    file = tmp_path / "rows.json"
    forced = ["--backend", "eager", "--json", str(file)]
    assert bench_adapter.main(["--cases", "decoder_queries", "--pass", "forward", *forced, *BRIEF]) == 0
    assert [row["backend"] for row in json.loads(file.read_text())["rows"]] == ["eager"]
