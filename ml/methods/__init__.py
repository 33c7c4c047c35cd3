"""Deletion methods, by name: `METHODS["energy_boundary"]`. A new method is a new file, imported here."""

from ml.methods import (
    ceu,
    energy_boundary,
    energy_only,
    fact_spans,
    ga,
    grad_diff,
    none,
    npo,
    pdu,
    satimp,
    simnpo,
    undial,
    wga,
)
from ml.methods.method import METHODS, Method, Need, Plan, SharesSteps, Training, UnlearningTask

__all__ = [
    "METHODS",
    "Method",
    "Need",
    "Plan",
    "SharesSteps",
    "Training",
    "UnlearningTask",
    "ceu",
    "energy_boundary",
    "energy_only",
    "fact_spans",
    "ga",
    "grad_diff",
    "none",
    "npo",
    "pdu",
    "satimp",
    "simnpo",
    "undial",
    "wga",
]
