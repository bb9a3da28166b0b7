"""Builds the tests of the kernels and runs them: natively, or for another processor under qemu's user emulation.

python csrc/cpu/tests/run.py native              every tier of this processor
python csrc/cpu/tests/run.py native --sanitize   the same under the address and undefined-behaviour sanitizers
python csrc/cpu/tests/run.py aarch64 ppc64le     cross-compiled, on each of the emulated processors below

Needs Debian's g++-aarch64-linux-gnu, g++-powerpc64le-linux-gnu and qemu-user for the other processors. Compiler warnings
are errors. CXX names the native compiler; what was built stays in build/tests and is built again when csrc/ changes.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
TESTS = sorted(str(path.relative_to(ROOT)) for path in Path(__file__).parent.glob("*.cpp"))

sys.path.insert(0, str(ROOT / "csrc"))
import tiers  # noqa: E402

SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
#: For each machine, the processors that are emulated, and the tiers that run there. Not POWER8: glibc's sine has an
#: instruction (mffscrni) that this processor takes for another, and qemu 7.2 for none.
EMULATED = {
    "aarch64": {"cortex-a72": ["scalar", "neon"], "neoverse-n1": ["neon_dotprod"], "max": ["neon_bf16"]},
    "ppc64le": {"power9": ["scalar", "vsx"]},
}
COMPILERS = {"aarch64": "aarch64-linux-gnu-g++", "ppc64le": "powerpc64le-linux-gnu-g++"}
PACKAGES = "g++-aarch64-linux-gnu g++-powerpc64le-linux-gnu qemu-user"


def compiler(machine: str) -> list[str]:
    """The command that compiles for a machine."""
    command = shlex.split(os.environ.get("CXX", "g++")) if machine == "native" else [COMPILERS[machine]]
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not on PATH. For the other processors: apt-get install {PACKAGES}")
    return command


def build(machine: str, sanitize: bool) -> Path:
    """The test program of a machine, with all of its tiers."""
    command = [*compiler(machine), *(SANITIZE if sanitize else ["-O2"]), *tiers.COMMON_FLAGS, "-Werror", "-pthread"]
    folder = ROOT / "build" / "tests" / (f"{machine}-sanitized" if sanitize else machine)
    units = [(source, "", []) for source in [*tiers.HOST_SOURCES, *TESTS]]
    for tier, flags in tiers.kernel_tiers(platform.machine() if machine == "native" else machine).items():
        kernel_flags = [*tiers.KERNEL_FLAGS, f"-DCORE_ISA={tier}", *flags]
        units += [(source, tier, kernel_flags) for source in tiers.KERNEL_SOURCES]

    def compiled(unit: tuple[str, str, list[str]]) -> str:
        source, tier, flags = unit
        return compile_one([*command, *flags], source, folder / tier)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, units))
    program = folder / "kernel_tests"
    partial = program.with_suffix(f".{os.getpid()}")
    subprocess.run([*command, *objects, "-o", str(partial)], check=True)
    return partial.replace(program)


def compile_one(command: list[str], source: str, folder: Path) -> str:
    """The object of a source, compiled unless it is newer than what it is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{source.removeprefix('csrc/').replace('/', '_').removesuffix('.cpp')}.o"
    inputs = [ROOT / source, *(ROOT / header for header in tiers.headers()), Path(__file__), Path(tiers.__file__)]
    if made.exists() and made.stat().st_mtime >= max(path.stat().st_mtime for path in inputs):
        return str(made)
    # Under a name of this process until it is whole: a run beside this one, or after one that was cut, takes no half of it.
    partial = made.with_suffix(f".{os.getpid()}")
    if subprocess.run([*command, "-c", source, "-o", str(partial)], cwd=ROOT, check=False).returncode != 0:
        partial.unlink(missing_ok=True)
        sys.exit(f"{source} does not compile with {shlex.join(command)}")
    partial.replace(made)
    return str(made)


def run_native(sanitize: bool) -> bool:
    """Whether all tests passed on all tiers of this processor."""
    return subprocess.run([build("native", sanitize)], check=False).returncode == 0


def run_emulated(machines: list[str]) -> bool:
    """Whether all tests passed on all processors of the machines, of which as many run at once as there are cores."""
    for machine in machines:
        if shutil.which(f"qemu-{machine}") is None:
            sys.exit(f"qemu-{machine} is not on PATH: apt-get install {PACKAGES}")
    programs = {machine: build(machine, sanitize=False) for machine in machines}
    runs = [(machine, processor) for machine in machines for processor in EMULATED[machine]]

    def passed(what: tuple[str, str]) -> bool:
        machine, processor = what
        sysroot = f"/usr/{COMPILERS[machine].removesuffix('-g++')}"
        command = [f"qemu-{machine}", "-cpu", processor, "-L", sysroot, str(programs[machine])]
        start = time.monotonic()
        done = subprocess.run([*command, *EMULATED[machine][processor]], check=False, capture_output=True, text=True)
        print(
            f"{machine} as {processor}, {time.monotonic() - start:.0f} s:\n{done.stdout}{done.stderr}",
            end="",
            flush=True,
        )
        return done.returncode == 0

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return all(list(pool.map(passed, runs)))


def main() -> None:
    """Exit status 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("machines", nargs="+", choices=["native", *EMULATED])
    parser.add_argument("--sanitize", action="store_true", help="under the sanitizers; for the native machine")
    args = parser.parse_args()
    if args.sanitize and args.machines != ["native"]:
        parser.error("--sanitize: the sanitizers' run-time does not work under qemu; it takes `native` alone")
    native = "native" not in args.machines or run_native(args.sanitize)
    emulated = [machine for machine in args.machines if machine != "native"]
    sys.exit(0 if native and run_emulated(emulated) else 1)


if __name__ == "__main__":
    main()
