"""Level serve: the executor by itself, driven with step plans as the scheduler makes them."""

from __future__ import annotations

from collections.abc import Sequence

from core.conformance.checkpoints import prompts
from core.conformance.failures import Broken, expect
from core.conformance.life import BLOCKS, NOTHING, Driver, Holdings, HostMemory, answer, started
from core.conformance.limits import Stage, within
from core.conformance.oracle import Oracle
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.errors import CoreError
from core.platform import Health

#: Seconds for an idle executor of a tiny model to end.
SHUTDOWN_S = 10.0
_DECODES = 5
#: A leak of 5 KiB a step, seen with a compiler that never freed its operations, is 1 MiB after so many.
_FLAT_STEPS, _KEPT_BYTES = 250, 1 << 20
_SETTLING_STEPS, _LOOKS = 50, 4


def _oracle(subject: Subject, driver: Driver) -> Oracle:
    return Oracle(driver.plan.config, subject.checkpoint().tensors)


def _expect_greedy(oracle: Oracle, subject: Subject, prompt: Sequence[int], output: Sequence[int], what: str) -> None:
    wrong = oracle.wrong_greedy(prompt, output, subject.dtype)
    expect(not wrong, f"{what}: {wrong}")


def _needed(count: int, driver: Driver) -> int:
    return -(-count // driver.plan.config.cache.block_size)


@check("executor.steps", "serve", "the scheduler knows nothing of a token but what the executor answers")
def steps(subject: Subject) -> None:
    """Prompts whole and in chunks, then decodes whose blocks come as they are needed: each token is the right one."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            size = driver.plan.config.cache.block_size
            first, second = (prompts(2, size, seed=seed)[1] for seed in (1, 2))
            outputs: dict[int, list[int]] = {0: [], 1: []}
            half = size // 2
            tokens = driver.run(driver.make([(0, half)], admitted=[driver.admit(0, first, [7])]))
            expect(not tokens, f"a step in the middle of a prompt sampled {tokens}")
            rows = [(0, size - half), (1, size)]
            _take(outputs, driver.run(driver.make(rows, admitted=[driver.admit(1, second, [3])])))
            fresh = [(0, 1, 20), (1, 1, 9)]  # both prompts fill their blocks: what comes next needs another
            _take(outputs, driver.run(driver.make([(1, 1), (0, 1)], blocks=fresh)))
            for _ in range(_DECODES):
                _take(outputs, driver.run(driver.make([(1, 1), (0, 1)])))
            oracle = _oracle(subject, driver)
            for row, prompt in ((0, first), (1, second)):
                _expect_greedy(oracle, subject, prompt, outputs[row], f"row {row} of two")

    within(scenario)


def _take(outputs: dict[int, list[int]], tokens: dict[int, int]) -> None:
    """Add a step's tokens to what every row of `outputs` said before."""
    expect(set(tokens) == set(outputs), f"rows {sorted(outputs)} are due to sample, {sorted(tokens)} did")
    for row, token in tokens.items():
        outputs[row].append(token)


@check("executor.order", "serve", "with two steps in flight a swap gives one user another's words")
def order(subject: Subject) -> None:
    """max_in_flight steps are submitted ahead; each ticket gives its own step, tokens in flight included."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            ahead, prompt = driver.executor.max_in_flight, prompts(2, 9, seed=3)[1]
            expect(ahead >= 1, f"max_in_flight is {ahead}")
            plans = [driver.make([(0, len(prompt))], admitted=[driver.admit(0, prompt, [5, 6])])]
            plans += [driver.make([(0, 1)]) for _ in range(2 * ahead)]
            output, tickets = [], []
            for plan in plans:
                ticket = driver.executor.submit(plan)
                expect(ticket.step == plan.step, f"submit() of step {plan.step} gave a ticket of step {ticket.step}")
                tickets.append((plan, ticket))
                if len(tickets) == ahead:
                    output.append(
                        answer(plan_ := tickets[0][0], driver.executor.collect(tickets.pop(0)[1]))[plan_.rows[0]]
                    )
            output += [answer(plan, driver.executor.collect(ticket))[0] for plan, ticket in tickets]
            _expect_greedy(_oracle(subject, driver), subject, prompt, output, f"{len(output)} steps, {ahead} in flight")

    within(scenario)


@check("executor.release", "serve", "an aborted request that runs on takes its blocks and its row from the next")
def release(subject: Subject) -> None:
    """A released row is silent; whoever gets the row, or its blocks, is answered as if nobody had had them before."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            first, second, third = (prompts(2, length, seed=length)[1] for length in (18, 30, 20))
            driver.run(driver.make([(0, len(first))], admitted=[driver.admit(0, first, [4, 8])]))
            anew = [driver.admit(0, second, [12, 5, 11]), driver.admit(1, third, [8, 4])]
            outputs: dict[int, list[int]] = {0: [], 1: []}
            _take(outputs, driver.run(driver.make([(0, len(second)), (1, len(third))], released=[0], admitted=anew)))
            _take(outputs, driver.run(driver.make([(0, 1), (1, 1)])))
            oracle = _oracle(subject, driver)
            _expect_greedy(oracle, subject, second, outputs[0], "a request in a row that was released")
            _expect_greedy(oracle, subject, third, outputs[1], "a request in blocks that were released")
            tokens = driver.run(driver.make([(1, 1)], released=[0]))
            expect(set(tokens) == {1}, f"row 0 was released, and rows {sorted(tokens)} sampled")

    within(scenario)


@check("executor.copies", "serve", "n > 1 and every forked request begin with a copied block")
def copies(subject: Subject) -> None:
    """Copies of blocks happen before the forward, in order."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            prompt = prompts(2, 11, seed=6)[1]
            parent = [driver.run(driver.make([(0, len(prompt))], admitted=[driver.admit(0, prompt, [4])]))[0]]
            child = driver.admit(1, prompt, [10], computed=len(prompt) - 1)
            plan = driver.make([(0, 1), (1, 1)], admitted=[child], copies=[(4, 9), (9, 10)])
            tokens = driver.run(plan)
            output = [tokens[1], *(driver.run(driver.make([(1, 1)]))[1] for _ in range(2))]
            oracle = _oracle(subject, driver)
            _expect_greedy(oracle, subject, prompt, [*parent, tokens[0]], "a parent whose block was copied")
            _expect_greedy(oracle, subject, prompt, output, "a request that began with a copied block")

    within(scenario)


@check("executor.memory_plan", "serve", "what users are told before loading is what their machine must have")
def memory_plan(subject: Subject) -> None:
    """Weights, activations, inputs and KV take what plan_memory() says, and the budget is there."""

    def scenario(stage: Stage) -> None:
        subject.release()
        plan = subject.planned(max_num_seqs=4, kv_cache_memory="32MiB")
        memory = subject.platform.memory()
        before = dict(memory.in_use())
        executor = subject.platform.create_executor(plan)
        try:
            stage("plan_memory()")
            said = executor.plan_memory()
            expect(dict(memory.in_use()) == before, "plan_memory() allocated device memory")
            stage("load()")
            executor.load(lambda what, fraction: None)
            budget = executor.measure_kv_budget()
            expect(budget >= said.kv_cache, f"measure_kv_budget() is {budget}, {said.kv_cache} were planned for the KV")
            executor.allocate_kv(said.num_blocks)
            held = {usage: size - before.get(usage, 0) for usage, size in memory.in_use().items()}
            planned = {
                "weights": said.weights,
                "activations": said.activations,
                "inputs": said.inputs,
                "kv": said.kv_cache,
            }
            for usage, size in planned.items():
                taken = held.get(usage, 0)
                expect(abs(taken - size) <= size / 10, f"{usage}: {size} bytes were planned and {taken} are taken")
        finally:
            stage("shutdown()")
            executor.shutdown()

    within(scenario)


@check("executor.health", "serve", "an orchestrator restarts what is unhealthy, and must not restart what is well")
def health(subject: Subject) -> None:
    """A working executor says that it is well, before and after steps."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            for when in ("before a step", "after it"):
                stage("health()")
                found = driver.executor.health()
                expect(isinstance(found, Health) and found.ok, f"health() {when} is {found!r}")
                driver.run(driver.make([(0, 3)], admitted=[driver.admit(0, [5, 6, 7], [2])]))

    within(scenario)


@check("executor.shutdown", "serve", "a deployment waits for this at every roll-out, and kills what does not end")
def shutdown(subject: Subject) -> None:
    """An executor ends in 10 s, twice if asked, refuses steps after, and gives all device memory back."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            driver.run(driver.make([(0, 3)], admitted=[driver.admit(0, [5, 6, 7], [2])]))
            within(lambda inner: _end(driver, inner), SHUTDOWN_S)

    within(scenario)
    left = {usage: size for usage, size in subject.platform.memory().in_use().items() if size}
    expect(not left, f"after shutdown() in_use() is {left}")


def _end(driver: Driver, stage: Stage) -> None:
    stage("shutdown()")
    driver.executor.shutdown()
    stage("a second shutdown()")
    try:
        driver.executor.shutdown()
    except Exception as error:  # of any kind: it may be called twice
        raise Broken(f"a second shutdown() raises {type(error).__name__}: {error}") from error
    stage("submit() after shutdown()")
    try:
        driver.executor.submit(driver.make([(0, 1)]))
    except (CoreError, RuntimeError):
        return
    raise Broken("submit() after shutdown() raises nothing")


@check("executor.leaves_nothing", "serve", "an engine is restarted in its process by tests, notebooks and LLM()")
def leaves_nothing(subject: Subject) -> None:
    """Threads, child processes and open files are as many after a second life as after the first."""

    def life(stage: Stage) -> None:
        with started(subject, stage) as driver:
            driver.run(driver.make([(0, 3)], admitted=[driver.admit(0, [5, 6, 7], [2])]))
        subject.release()

    before = Holdings.now()
    within(life)  # what is made once and kept for good is there after this
    NOTHING.growth(before)
    kept = Holdings.now().beyond(before)
    for _ in range(2):
        within(life)
    more = kept.growth(before)
    expect(not more, f"two lives of an executor leave {more}")


@check("executor.flat_memory", "serve", "a few kilobytes a step are a machine's whole memory in a day")
def flat_memory(subject: Subject) -> None:
    """Hundreds of equal steps keep no memory of this process."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:

            def run(steps: int) -> None:
                for _ in range(steps):
                    driver.run(driver.make([(0, 3)], released=[0], admitted=[driver.admit(0, [5, 6, 7], [2])]))

            driver.run(driver.make([(0, 3)], admitted=[driver.admit(0, [5, 6, 7], [2])]))
            run(_SETTLING_STEPS)
            kept = []
            for _ in range(
                _LOOKS
            ):  # an allocator may take more from the system now and then; a leak does at every look
                before = HostMemory.now()
                run(_FLAT_STEPS)
                kept.append(before.growth())
                if kept[-1] <= _KEPT_BYTES:
                    return
            raise Broken(f"{_FLAT_STEPS} steps keep {min(kept) >> 10} KiB, and as many more each time")

    within(scenario)


@check("executor.full_cache", "serve", "the last block of the cache is used on the busiest day")
def full_cache(subject: Subject) -> None:
    """A request in the cache's last blocks is answered as in the first."""

    def scenario(stage: Stage) -> None:
        with started(subject, stage) as driver:
            prompt = prompts(2, 40, seed=7)[1]
            count = _needed(len(prompt) + 1, driver)
            blocks = list(range(BLOCKS - 1, BLOCKS - 1 - count, -1))
            output = [driver.run(driver.make([(0, len(prompt))], admitted=[driver.admit(0, prompt, blocks)]))[0]]
            _expect_greedy(
                _oracle(subject, driver), subject, prompt, output, f"a request in blocks {blocks} of {BLOCKS}"
            )

    within(scenario)
