"""The support matrix: docs/support.md out of the conformance reports in docs/reports.

python docs/support.py            write the page (`make docs`)
python docs/support.py --run      run the conformance of every platform at hand first (`make support-matrix`)
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from core.conformance.registry import LEVELS, Level
from core.conformance.report import Report

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPORTS = DOCS / "reports"
PAGE = DOCS / "support.md"
CORE = [sys.executable, "-m", "core.cli.main"]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A report, with what it does not say of itself: when it was made, and on what kind of machine."""

    date: str
    machine: str
    report: Report


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What docs/support.toml says of a platform. `verified` says what its report was made on; without one it is not run."""

    verified: str  # one of VERIFIED
    what: str
    level: Level = "serve"  # that its report is made at

    def __post_init__(self) -> None:
        if self.verified not in VERIFIED:
            raise ValueError(f"docs/support.toml: {self.verified!r} is none of {', '.join(VERIFIED)}")


#: How a platform may stand, and what that means.
VERIFIED = {
    "on hardware": "the conformance kit ran on the hardware itself",
    "simulated": "there is no such hardware here, a clock stands in for it: the engine around it is tested, its arithmetic is not",
    "for tests": "no hardware of its own: a rule of the contract, held over the host",
    "kernels in emulation": "the kernels' own tests ran under an emulator; the platform around them has not run on such hardware",
    "compiled and interpreted": "its kernels were built for every target and their numbers checked in an interpreter; not yet run on hardware",
    "interpreted": "its kernels' numbers were checked in an interpreter; nothing was compiled for such hardware, nothing has run on it",
    "on a stand-in": "all of it ran on its compiler's CPU device; not yet run on hardware",
    "not run": "nothing of it has been tried",
}
#: What a platform may be said to be without a report.
WITHOUT_REPORT = ("kernels in emulation", "compiled and interpreted", "interpreted", "on a stand-in")


# --- the page ------------------------------------------------------------------------------------------------


def runs() -> dict[str, Run]:
    """The checked-in reports, by platform."""
    return {path.stem: msgspec.json.decode(path.read_bytes(), type=Run) for path in sorted(REPORTS.glob("*.json"))}


def standings() -> dict[str, Standing]:
    """Every platform that the page tells of."""
    return msgspec.toml.decode((DOCS / "support.toml").read_bytes(), type=dict[str, Standing])


def page() -> str:
    """The whole page."""
    found, told = runs(), standings()
    columns = {name: told[name] for name in told if name in found} | told
    lines = [
        "<!-- Written by docs/support.py from docs/reports and docs/support.toml: `make support-matrix`, `make docs`. -->\n",
        "# What is supported, and how that is known\n",
        "Each column is a platform. What is filled in comes from a report of `core conformance NAME --report FILE`: what the kit saw, not "
        "what anyone hopes. [conformance.md](conformance.md) says what the checks are.\n",
        "\n".join(f"- **{how}**: {meaning}." for how, meaning in VERIFIED.items()) + "\n",
        _table(columns, found),
    ]
    for name, run in found.items():
        lines.append(_remarks(name, run.report))
    return "\n".join(lines)


def _table(columns: Mapping[str, Standing], found: Mapping[str, Run]) -> str:
    cells = {name: dict(_cells(standing, found.get(name))) for name, standing in columns.items()}
    titles = dict.fromkeys(title for column in cells.values() for title in column)
    head = ["| |" + "".join(f" `{name}` |" for name in columns), "|---" * (len(columns) + 1) + "|"]
    rows = [f"| {title} |" + "".join(f" {cells[name].get(title, '')} |" for name in columns) for title in titles]
    return "\n".join(head + rows) + "\n"


def _cells(standing: Standing, run: Run | None) -> Iterator[tuple[str, str]]:
    """A platform's rows. What it declares is told only where the level of its report tests that."""
    yield "what", standing.what
    if run is None:
        yield "verified", f"**{standing.verified if standing.verified in WITHOUT_REPORT else 'not run'}**"
        return
    yield "verified", f"**{standing.verified}**"
    report, can = run.report, run.report.capabilities
    outcomes = Counter(check.outcome for check in report.checks)
    yield (
        "conformance",
        f"level {report.level}: "
        + ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("passed", "failed", "unclaimed")),
    )
    yield "when, on", f"{run.date}, {run.machine}"
    yield "core, contract", f"{report.core}, {_version(report.plugin_contract)} (core's: {_version(report.contract)})"
    yield "plugin", report.distribution
    yield "device", ", ".join(dict.fromkeys(device.name for device in report.devices))
    tested = [*map(str, LEVELS)].index(report.level)
    if tested >= LEVELS.index("ops"):
        yield "weights", _listed(can["dtypes"])
        yield "KV cache", _listed(can["kv_dtypes"])
        yield "step shapes", f"{len(can['buckets'])} fixed" if can["buckets"] else "any"
        yield "KV blocks out and in", _yes(can["kv_transfer"])
        for op in dict.fromkeys(support.op for support in report.ops):
            yield f"`{op}`", _listed([s.dtype for s in report.ops if s.op == op and s.supported]) or "no"
        yield "attention's features", _all({name: answer is True for name, answer in report.attention.items()})
    if tested >= LEVELS.index("serve"):
        yield "same step, same bits", _yes(can["deterministic"])
        yield "tokens independent of the batch", _yes(can["batch_invariant"])
        yield "devices at once", str(can["max_parallel_size"])
        yield "sampling", _all(report.sampling)


def _remarks(name: str, report: Report) -> str:
    """What failed, and what is not claimed, with the kit's reasons."""
    lines = [f"## `{name}`\n"]
    for outcome in ("failed", "unclaimed"):
        checks = [check for check in report.checks if check.outcome == outcome]
        lines += [f"- {outcome}: `{check.name}`: {check.reason}" for check in checks]
    if len(lines) == 1:
        lines.append("Every check passed.")
    return "\n".join(lines) + "\n"


def _version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _yes(answer: bool) -> str:
    return "yes" if answer else "not declared"


def _all(answers: Mapping[str, bool]) -> str:
    missing = [name for name, answer in answers.items() if not answer]
    return f"all but {', '.join(missing)}" if missing else "all"


# --- running -------------------------------------------------------------------------------------------------


def run_all() -> None:
    """Run the conformance of every platform that is available here, and keep the reports."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_in_tree(Path(folder)))}
        listed = subprocess.run([*CORE, "platforms", "--json"], env=environment, check=False, capture_output=True)
        for row in json.loads(listed.stdout):
            if row["state"] == "AVAILABLE" and row["name"] in standings():
                _keep(row["name"], _conformance(row["name"], Path(folder) / row["name"], environment))
            else:
                print(f"{row['name']} is passed over: {row['state']}, {row['reason']}")


def _conformance(name: str, report: Path, environment: Mapping[str, str]) -> Report:
    """What the kit reports; it shows its table meanwhile."""
    command = ["conformance", name, "--level", standings()[name].level, "--report", str(report)]
    subprocess.run([*CORE, *command], env=environment, check=False)
    return msgspec.json.decode(report.read_bytes(), type=Report)


def _keep(name: str, report: Report) -> None:
    run = Run(date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(), machine=_machine(), report=report)
    text = msgspec.json.format(msgspec.json.encode(run).decode(), indent=1)
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"{name}.json").write_text(text.replace(f"{ROOT}/", "") + "\n", encoding="utf-8")


def _in_tree(site: Path) -> list[str]:
    """A path on which the platforms of this tree that are not installed are found: in plugins/, and those of the tests."""
    path = [str(site), str(ROOT / "tests" / "platforms")]
    for file in ROOT.glob("plugins/*/pyproject.toml"):
        project = tomllib.loads(file.read_text())["project"]
        entries = project["entry-points"].get("core.platforms", {})
        try:
            importlib.metadata.distribution(project["name"])
        except importlib.metadata.PackageNotFoundError:
            info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
            )
            lines = "".join(f"{name} = {module}\n" for name, module in entries.items())
            (info / "entry_points.txt").write_text(f"[core.platforms]\n{lines}")
            path.append(str(file.parent))
    return path


def _machine() -> str:
    """Its kind; no name of it."""
    return f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the conformance of every platform at hand first")
    if parser.parse_args().run:
        run_all()
    PAGE.write_text(page(), encoding="utf-8")
