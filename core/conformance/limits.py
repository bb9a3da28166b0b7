"""Time limits: what hangs must become a failure that says where."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from core.conformance.failures import Broken

_Given = TypeVar("_Given")

#: Seconds for an executor of a tiny model to start and take a few steps, compilation included: what takes longer counts as
#: hanging.
PATIENCE_S = 300.0


class Hung(Broken):
    """What was running still runs, on a thread that nobody can stop."""


class Stage:
    """What is being done, for the message when it does not end."""

    def __init__(self) -> None:
        self.name = "starting"

    def __call__(self, name: str) -> None:
        self.name = name


def within(function: Callable[[Stage], _Given], seconds: float = PATIENCE_S) -> _Given:
    """What `function` gives. Raises Hung, naming the stage, where it does not end in `seconds`.

    It runs on one thread of its own, as an executor's calls all come from one thread.
    """
    stage, given, raised = Stage(), list[_Given](), list[BaseException]()

    def run() -> None:
        try:
            given.append(function(stage))
        except BaseException as error:  # handed over to the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, name="conformance", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Hung(f"{stage.name} did not end in {seconds:g} s")
    if raised:
        raise raised[0]
    return given[0]
