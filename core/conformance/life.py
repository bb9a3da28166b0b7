"""An executor's life, step plans made by hand, and what a process holds: for checks of executors."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from core.conformance.failures import Broken
from core.conformance.limits import Stage
from core.conformance.subject import Subject
from core.platform import Executor, Plan
from core.types import Admission, KVOp, SamplingParams, StepOutput, StepPlan

#: The blocks of an executor's caches, enough for all requests of a check.
BLOCKS = 40
GREEDY = SamplingParams(temperature=0.0, seed=0, max_tokens=64, ignore_eos=True)
#: Seconds for counts of threads and files to settle: an ended thread goes a moment after it was joined.
_SETTLING_S = 3.0


# --- steps ---------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """Makes plans for an executor as the scheduler does, with blocks that the check chose."""

    executor: Executor
    plan: Plan
    groups: int
    _step: int = field(default=0, init=False)

    def admit(self, row: int, token_ids: Sequence[int], blocks: Sequence[int], computed: int = 0) -> Admission:
        """A request for `row`, all of whose tokens are its prompt."""
        return Admission(
            row=row,
            request_id=f"row {row}",
            token_ids=list(token_ids),
            num_prompt_tokens=len(token_ids),
            num_computed_tokens=computed,
            block_ids=[list(blocks) for _ in range(self.groups)],
            params=GREEDY,
            choice_index=0,
        )

    def make(
        self,
        rows: Sequence[tuple[int, int]],
        *,
        admitted: Sequence[Admission] = (),
        released: Sequence[int] = (),
        blocks: Sequence[tuple[int, int, int]] = (),
        copies: Sequence[tuple[int, int]] = (),
    ) -> StepPlan:
        """The next plan: `rows` of (row, tokens), `blocks` of (row, index, block), `copies` of (source, target)."""
        self._step += 1
        return StepPlan(
            step=self._step - 1,
            released=list(released),
            admitted=list(admitted),
            rows=[row for row, _ in rows],
            num_tokens=[count for _, count in rows],
            blocks=[(row, group, index, block) for row, index, block in blocks for group in range(self.groups)],
            kv_ops=[KVOp("copy", group, src, dst) for src, dst in copies for group in range(self.groups)],
        )

    def run(self, plan: StepPlan) -> dict[int, int]:
        """One step: the token of each row that sampled. Raises Broken for an answer to another plan."""
        return answer(plan, self.executor.collect(self.executor.submit(plan)))


def answer(plan: StepPlan, output: StepOutput) -> dict[int, int]:
    """An output's tokens by row. Raises Broken where it does not answer `plan`."""
    if not isinstance(output, StepOutput):
        raise Broken(f"collect() gave {output!r}")
    if output.step != plan.step:
        raise Broken(f"collect() of step {plan.step} gave the output of step {output.step}")
    if len(output.rows) != len(output.token_ids) or len(set(output.rows)) != len(output.rows):
        raise Broken(f"step {plan.step}: rows {output.rows} with tokens {output.token_ids}")
    if not set(output.rows) <= set(plan.rows):
        raise Broken(f"step {plan.step} runs rows {plan.rows}, its output has rows {output.rows}")
    return dict(zip(output.rows, output.token_ids, strict=True))


@contextlib.contextmanager
def started(subject: Subject, stage: Stage, **options: Any) -> Iterator[Driver]:
    """An executor of a platform made for it, ready for steps, and shut down afterwards."""
    subject.release()
    plan = subject.planned(**{"max_num_seqs": 4, "kv_cache_memory": "32MiB", **options})
    stage("create_executor()")
    executor = subject.platform.create_executor(plan)
    try:
        stage("load()")
        executor.load(_nothing)
        stage("allocate_kv()")
        executor.allocate_kv(BLOCKS)
        stage("warmup()")
        executor.warmup(_nothing)
        stage("a step")
        yield Driver(executor, plan, len(executor.kv_groups()))
    finally:
        stage("shutdown()")
        executor.shutdown()


def _nothing(what: str, fraction: float) -> None:
    """Progress that nobody watches."""


# --- what a process holds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holdings:
    """Threads, child processes and open files of this process, by their numbers."""

    threads: frozenset[str]
    children: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Holdings:
        """Those that there are."""
        tasks = os.listdir("/proc/self/task")
        children = " ".join(_read(f"/proc/self/task/{task}/children") for task in tasks)
        return cls(frozenset(tasks), frozenset(children.split()), frozenset(os.listdir("/proc/self/fd")))

    def beyond(self, before: Holdings) -> Holdings:
        """Those that were not there before. What others had and have given up since does not hide any of them."""
        return Holdings(self.threads - before.threads, self.children - before.children, self.files - before.files)

    def growth(self, before: Holdings) -> str:
        """How much more there is beyond `before` by now, once it has had time to go; empty if nothing."""
        end = time.monotonic() + _SETTLING_S
        while (more := self._more(before)) and time.monotonic() < end:
            time.sleep(0.02)
        return more

    def _more(self, before: Holdings) -> str:
        now = Holdings.now().beyond(before)
        counts = {
            "threads": len(now.threads) - len(self.threads),
            "child processes": len(now.children) - len(self.children),
            "open files": len(now.files) - len(self.files),
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count > 0)


NOTHING = Holdings(frozenset(), frozenset(), frozenset())


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc (mallinfo(3))."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class HostMemory:
    """Bytes of this process: those that lie in the machine's memory (proc(5), statm), and those that the C library has
    given out (mallinfo(3); 0 where it is another). What a leak takes from free room in the heap shows in the latter
    only, what takes memory from the system itself in the former."""

    resident: int
    given_out: int

    @classmethod
    def now(cls) -> HostMemory:
        """Count them."""
        gc.collect()
        resident = int(_read("/proc/self/statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
        if mallinfo is None:
            return cls(resident, 0)
        mallinfo.restype = _MallInfo
        info = mallinfo()
        return cls(resident, info.uordblks + info.hblkhd)

    def growth(self) -> int:
        """Bytes that there are more by now, of either kind."""
        now = HostMemory.now()
        return max(now.resident - self.resident, now.given_out - self.given_out)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # the thread has just ended
        return ""
