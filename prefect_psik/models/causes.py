"""Why jobs and transfers end badly."""

from __future__ import annotations

from enum import StrEnum


class FailureCause(StrEnum):
    """Why a job did not end as completed."""

    script = "script"
    walltime = "walltime"
    out_of_memory = "out_of_memory"
    node_failure = "node_failure"
    preempted = "preempted"
    deadline = "deadline"
    launch = "launch"
    canceled_by_us = "canceled_by_us"
    canceled_outside = "canceled_outside"
    rejected = "rejected"
    missing_output = "missing_output"
    lost = "lost"


class TransferCause(StrEnum):
    """Why data was not moved, listed or deleted."""

    permission_denied = "permission_denied"
    not_found = "not_found"
    quota = "quota"
    away = "away"
    checksum = "checksum"
    changed = "changed"
    deadline = "deadline"
    canceled = "canceled"
    consent = "consent"
    login = "login"
    other = "other"
