"""Figures for operators: what a frontend sees of its requests, and what the engine counts."""

from __future__ import annotations

from core.metrics.base import FinishedChoice, Metrics
from core.metrics.prometheus import PrometheusMetrics

__all__ = ["FinishedChoice", "Metrics", "PrometheusMetrics"]
