"""Which request computes what in the next step. Plain Python, no torch."""

from __future__ import annotations

from core.scheduler.scheduler import Scheduler
from core.scheduler.stats import SchedulerStats

__all__ = ["Scheduler", "SchedulerStats"]
