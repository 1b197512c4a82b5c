"""The planted faults of mutations.py fit the sources; `make mutate` shows that the suite catches them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_fits(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert all((ROOT / test).exists() for test in mutation.tests if test.endswith(".py"))


def test_names_are_distinct() -> None:
    assert max(Counter(m.name for m in MUTATIONS).values()) == 1
