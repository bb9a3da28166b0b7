"""The kernels' thread pool: used from several threads at once, after a fork, and while its size changes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from platforms._shared import _native
from platforms._shared.native.ops import KERNELS


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = _native.num_threads()
    yield
    _native.set_num_threads(threads)


def work(rows: int = 64) -> torch.Tensor:
    """A sum over several items, whose result is known."""
    gate_up = torch.ones(rows, 4096)
    out = torch.zeros(rows, 2048)
    KERNELS["silu_mul"](gate_up, out)
    return out


def test_callers_on_several_threads_all_get_their_results() -> None:
    _native.set_num_threads(3)
    expected = work()
    wrong: list[int] = []

    def caller(number: int) -> None:
        for _ in range(200):
            if not torch.equal(work(), expected):
                wrong.append(number)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in callers:
        thread.start()
    for threads in (1, 2, 4, 3) * 10:
        _native.set_num_threads(threads)
    for thread in callers:
        thread.join()
    assert not wrong


FORK = """
import os, torch
from platforms._shared import _native
from platforms._shared.native.ops import KERNELS

def work():
    out = torch.zeros(64, 2048)
    KERNELS["silu_mul"](torch.ones(64, 4096), out)
    return len(os.listdir("/proc/self/task")), float(out.min()), _native.num_threads()

torch.set_num_threads(1)
_native.set_num_threads(2)
parent = work()
child = os.fork()
if child == 0:
    os._exit(0 if work() == parent else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), work() == parent)
"""


def test_a_forked_child_has_threads_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["0", "True"]


def test_the_process_ends_while_threads_sleep() -> None:
    code = "from platforms._shared import _native as n; n.set_num_threads(4); import torch\n"
    code += "from platforms._shared.native.ops import KERNELS; KERNELS['silu_mul'](torch.ones(64, 4096), torch.ones(64, 2048))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
