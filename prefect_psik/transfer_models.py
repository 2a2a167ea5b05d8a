"""What stored results of older releases name; see `prefect_psik.models.transfers`."""

from prefect_psik.models.transfers import (
    Arrival,
    FileEntry,
    LeftOut,
    TransferHandle,
    TransferResult,
    TransferState,
    TransferStatus,
)

__all__ = [
    "Arrival",
    "FileEntry",
    "LeftOut",
    "TransferHandle",
    "TransferResult",
    "TransferState",
    "TransferStatus",
]
