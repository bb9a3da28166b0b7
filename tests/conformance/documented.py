"""The parts of docs/conformance.md that are made from the kit itself. Run as a script, it puts them there."""

from __future__ import annotations

import sys
from pathlib import Path

from core.conformance import registry
from core.conformance.bounds import ELEMENTARY, LOGITS, NEAR_TIE, ROUNDINGS, UNIT

sys.path.insert(0, str(Path(__file__).parent / "mutants"))

from mutant_faults import all_faults

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


def checks() -> str:
    """A table of checks for each level."""
    parts = []
    for level in registry.LEVELS:
        rows = [f"| `{c.name}` | {_does(c)} | {c.why} |" for c in registry.all_checks() if c.level == level]
        parts.append(
            "\n".join([f"### Level {level}", "", "| check | holds that | matters because |", "|---|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _does(check: registry.Check) -> str:
    assert check.run.__doc__, f"{check.name} has no docstring"
    return " ".join(check.run.__doc__.split())


def bounds() -> str:
    """The numbers of core.conformance.bounds."""
    head = "| | " + " | ".join(UNIT) + " |"
    line = "|---|" + "---|" * len(UNIT)
    rows = [
        "| u, the unit roundoff | " + " | ".join(f"{u:.3g}" for u in UNIT.values()) + " |",
        *(
            f"| {op} | " + " | ".join(f"{n * u:.3g}" for u in UNIT.values()) + " |"
            for op, n in sorted(ROUNDINGS.items())
        ),
        "| logits of a whole tiny model | " + " | ".join(f"{LOGITS[d]:.3g}" for d in UNIT) + " |",
        "| near tie of two logits | " + " | ".join(f"{NEAR_TIE[d]:.3g}" for d in UNIT) + " |",
    ]
    return "\n".join(
        [head, line, *rows, "", f"To each op's line 2 (n + {ELEMENTARY}) 2^-24 is added, n being its longest sum."]
    )


def mutants() -> str:
    """The mutation table."""
    rows = [f"| {fault.name} | {fault.what} | `{fault.caught_by}` |" for fault in all_faults()]
    return "\n".join(["| mutant | fault | caught by |", "|---|---|---|", *rows])


PARTS = {"checks": checks, "bounds": bounds, "mutants": mutants}


def with_parts(page: str) -> str:
    """The page with its generated parts as they are now."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: made by tests/conformance/documented.py -->", f"<!-- /{name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        assert found and closed, f"{PAGE} has no part {name!r}"
        page = f"{before}{begin}\n{make()}\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_parts(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
