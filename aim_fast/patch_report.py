"""What `patch` did and why: rows to work with, and a table to read."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One module that looks like an adapter: where it is, whether it was taken, and why.

    path: its first name in the model, "" for the model itself; aliases: further names of the same object.
    """

    path: str
    kind: str
    taken: bool
    why: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The rows in the order of the model. As a string a table, in which rows that differ by a number alone are one."""

    rows: tuple[Row, ...]
    dry_run: bool = False

    @property
    def taken(self) -> tuple[str, ...]:
        """The paths of the modules that run the operator (with dry_run: that would)."""
        return tuple(row.path for row in self.rows if row.taken)

    @property
    def refused(self) -> dict[str, str]:
        """The reason for each path that is left as it is."""
        return {row.path: row.why for row in self.rows if not row.taken}

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            pattern = re.sub(r"\b\d+\b", "*", row.path)
            groups.setdefault((pattern, row.kind, "taken" if row.taken else "refused", row.why), []).append(row)
        lines = [("module", "", "class", "", "why")]
        for (pattern, kind, verdict, why), rows in groups.items():
            path = pattern if len(rows) > 1 else rows[0].path or "(the model)"
            lines.append((path, f"x {len(rows)}" if len(rows) > 1 else "", kind, verdict, why))
        columns = [column for column in zip(*lines, strict=True) if any(column)]
        padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
        table = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
        total = f"{len(self.taken)} of {len(self.rows)} taken" if self.rows else "nothing looks like an adapter"
        if self.dry_run:
            total += " (dry run: nothing was changed)"
        return "\n".join([*(table if self.rows else ()), total])
