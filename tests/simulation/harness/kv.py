"""A model of the KV cache that remembers what each slot was written with, and checks every read and write against it.

The KV at a position depends on every token before it, so a slot's value is a *node*: the number of one beginning of one
sequence in a tree of all sequences (tokens below a salt). Two slots hold the same KV exactly if they hold the same node.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

from core.types import NULL_BLOCK, Admission, KVGroupSpec, KVOp, StepPlan
from harness.trace import Violation

Node = int
NOTHING: Node = 0


class Sequences:
    """The tree of all beginnings, and the name that each full block has by the scheme of `core.cache.prefix`."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._children: dict[tuple[Node, int], Node] = {}
        self._parents: list[tuple[Node, int]] = [(NOTHING, 0)]  # of each node: parent and last token
        self._roots: dict[str, Node] = {}
        self._names: dict[Node, bytes] = {}  # of blocks that end with the node

    def root(self, salt: str, name: bytes) -> Node:
        """Where sequences with this salt begin. Every engine of a server has the same name for that."""
        if salt not in self._roots:
            self._roots[salt] = self._add(NOTHING, 0)
            self._names[self._roots[salt]] = name
        root = self._roots[salt]
        if self._names[root] != name:
            raise Violation("hashes-name-contents", f"salt {salt!r} has the names {self._names[root]!r} and {name!r}")
        return root

    def extend(self, node: Node, token: int) -> Node:
        child = self._children.get((node, token))
        if child is None:
            child = self._children[node, token] = self._add(node, token)
        return child

    def _add(self, parent: Node, token: int) -> Node:
        self._parents.append((parent, token))
        return len(self._parents) - 1

    def holds(self, content: Sequence[Node], name: bytes) -> bool:
        """Whether a block with this content is what `name` says."""
        last = content[-1]
        return last != NOTHING and list(content) == self._block(last) and self._name(last) == name

    def _block(self, last: Node) -> list[Node]:
        nodes = [last]
        while len(nodes) < self.block_size:
            nodes.append(self._parents[nodes[-1]][0])
        return nodes[::-1]

    def _name(self, last: Node) -> bytes:
        name = self._names.get(last)
        if name is None:
            nodes = self._block(last)
            tokens = [self._parents[node][1] for node in nodes]
            before = self._parents[nodes[0]][0]
            name = hashlib.sha256(self._name(before) + struct.pack(f"<{len(tokens)}I", *tokens)).digest()
            self._names[last] = name
        return name


class Row:
    """The executor's state of a running request. `path[p]` is the node of position p."""

    __slots__ = ("computed", "path", "request_id", "root", "tables")

    def __init__(self, admission: Admission, root: Node) -> None:
        self.request_id = admission.request_id
        self.root = root
        self.path: list[Node] = []
        self.computed = admission.num_computed_tokens
        self.tables = [list(table) for table in admission.block_ids]


class Store:
    """What a connector has been given: by group and name, the content of a block. Outlives engines."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, bytes], list[Node]] = {}


class KVModel:
    """The cache of one engine. Plans are applied when they are submitted: they execute in that order."""

    def __init__(
        self,
        groups: Sequence[KVGroupSpec],
        num_blocks: int,
        sequences: Sequences,
        store: Store,
        next_token: Callable[[str, int], int],
    ) -> None:
        """next_token: what request `id` has at position `p`, prompt or answer."""
        self.windows = [group.window for group in groups]
        self.sequences = sequences
        self.store = store
        self.size = sequences.block_size
        self.kv = [[[NOTHING] * self.size for _ in range(num_blocks)] for _ in groups]
        self.rows: dict[int, Row] = {}
        self.loading: dict[tuple[int, int], str] = {}  # (group, block) that a connector is filling, for whom
        self._holders = [[0] * num_blocks for _ in groups]  # rows with the block in their table
        self._token = next_token

    # --- a plan ---

    def apply(self, plan: StepPlan, root_of: Callable[[str], Node]) -> dict[int, int]:
        """Take in a plan; `root_of` a request is where its sequence begins. Returns the token that each sampling row
        must give. Raises Violation."""
        for row in plan.released:
            self._release(row)
        for admission in plan.admitted:
            self._admit(admission, root_of(admission.request_id))
        for row, group, index, block in plan.blocks:
            self._grow(self.rows[row], group, index, block)
        for op in plan.kv_ops:
            self._move(op)
        expected = {}
        for row, count in zip(plan.rows, plan.num_tokens, strict=True):
            state = self.rows[row]
            self._forward(state, count)
            if state.computed == len(state.path):
                expected[row] = self._append(state)
        return expected

    def _release(self, row: int) -> None:
        state = self.rows.pop(row, None)
        if state is None:
            raise Violation("rows-are-unique", f"row {row} is released and nobody has it")
        for holders, table in zip(self._holders, state.tables, strict=True):
            for block in table:
                holders[block] -= 1

    def _admit(self, admission: Admission, root: Node) -> None:
        if admission.row in self.rows:
            raise Violation("rows-are-unique", f"row {admission.row} goes to two requests at once")
        state = self.rows[admission.row] = Row(admission, root)
        for position, token in enumerate(admission.token_ids):
            if token != self._token(admission.request_id, position):
                raise Violation(
                    "admissions-are-whole",
                    f"{admission.request_id} is admitted with token {token} at position {position}, "
                    f"which is {self._token(admission.request_id, position)}",
                )
            self._append(state)
        for holders, table in zip(self._holders, state.tables, strict=True):
            for block in table:
                holders[block] += 1

    def _append(self, state: Row) -> int:
        position = len(state.path)
        token = self._token(state.request_id, position)
        state.path.append(self.sequences.extend(state.path[-1] if state.path else state.root, token))
        return token

    def _grow(self, state: Row, group: int, index: int, block: int) -> None:
        if index != len(state.tables[group]):
            raise Violation("tables-agree", f"{state.request_id} gets block {index} of {len(state.tables[group])}")
        state.tables[group].append(block)
        self._holders[group][block] += 1

    # --- blocks ---

    def _move(self, op: KVOp) -> None:
        blocks = self.kv[op.group]
        if op.kind == "copy":
            self._check_idle(op.group, op.dst, op.request_id)
            blocks[op.dst] = list(blocks[op.src])
        elif op.kind == "save":
            if not self.sequences.holds(blocks[op.src], op.key):
                raise Violation(
                    "hashes-name-contents", f"block {op.src} is saved under a name that is not its content's"
                )
            self.store.blocks[op.group, op.key] = list(blocks[op.src])
        else:
            self._check_idle(op.group, op.dst, op.request_id)
            blocks[op.dst] = [NOTHING] * self.size
            self.loading[op.group, op.dst] = op.request_id

    def finish_load(self, op: KVOp, *, loaded: bool) -> None:
        """A connector is done with one block."""
        del self.loading[op.group, op.dst]
        if loaded:
            self.kv[op.group][op.dst] = list(self.store.blocks[op.group, op.key])

    def _check_idle(self, group: int, block: int, request_id: str) -> None:
        """Nobody else is filling the block."""
        other = self.loading.get((group, block))
        if other is not None:
            raise Violation("one-writer", f"{request_id} writes block {block}, which is being loaded for {other}")

    # --- a forward ---

    def _forward(self, state: Row, count: int) -> None:
        start, end = state.computed, state.computed + count
        if not start < end <= len(state.path):
            raise Violation("rows-are-unique", f"{state.request_id} computes {start}…{end} of {len(state.path)} tokens")
        for group, window in enumerate(self.windows):
            self._write(state, group, start, end)
            self._read(state, group, 0 if window is None else max(0, start - window + 1), end)
        state.computed = end

    def _write(self, state: Row, group: int, start: int, end: int) -> None:
        table, size = state.tables[group], self.size
        for index in range(start // size, -(-end // size)):
            block = table[index] if index < len(table) else NULL_BLOCK
            low, high = max(start, index * size), min(end, (index + 1) * size)
            if block == NULL_BLOCK:
                raise Violation("writes-have-room", f"{state.request_id} has no block for positions {low}…{high}")
            self._check_idle(group, block, state.request_id)
            if self._holders[group][block] > 1:
                self._check_others(state, group, index, low, high)
            self.kv[group][block][low - index * size : high - index * size] = state.path[low:high]

    def _check_others(self, writer: Row, group: int, index: int, low: int, high: int) -> None:
        """No other row can still read a different value from positions low…high, which `writer` overwrites."""
        block, window = writer.tables[group][index], self.windows[group]
        for other in self.rows.values():
            if other is writer or index >= len(other.tables[group]) or other.tables[group][index] != block:
                continue
            first = 0 if window is None else max(0, other.computed - window + 1)
            for position in range(max(low, first), min(high, other.computed)):
                if other.path[position] != writer.path[position]:
                    raise Violation(
                        "one-writer",
                        f"{writer.request_id} overwrites position {position} of {other.request_id} in block {block}",
                    )

    def _read(self, state: Row, group: int, first: int, end: int) -> None:
        """Every position from `first` that positions up to `end` read holds what belongs there."""
        table, size, blocks, path = state.tables[group], self.size, self.kv[group], state.path
        for index in range(first // size, -(-end // size)):
            low, high = max(first, index * size), min(end, (index + 1) * size)
            if blocks[table[index]][low - index * size : high - index * size] != path[low:high]:
                raise Violation(
                    "reads-what-was-written",
                    f"{state.request_id} reads positions {low}…{high} of group {group} in block {table[index]}, which "
                    f"hold {blocks[table[index]][low - index * size : high - index * size]} and not {path[low:high]}",
                )
