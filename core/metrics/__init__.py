"""Figures for operators: what a frontend sees of its requests, and what the engine counts."""

from __future__ import annotations

from core.metrics.base import FinishedChoice, MetricsSink
from core.metrics.sinks import Metrics, make_metrics

__all__ = ["FinishedChoice", "Metrics", "MetricsSink", "make_metrics"]
