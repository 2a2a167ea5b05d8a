"""The clock of a client that jumps: `time.time` as the file says that `PREFECT_PSIK_CHAOS_CLOCK` names.

The file holds one number, the seconds by which the clock is ahead; it is looked at each time. The package reads
`time.time` for its deadlines of transfers and for tokens, and `time.monotonic` for its limits and pauses; `direct`
of `flows.py` has all three. `datetime.now` is left alone on purpose: the package reads it only to schedule a
prune, but Prefect sleeps by it until a retry is due, for days if the clock is days behind.
"""

import mmap
import os
import struct
import time

_file = os.environ.get("PREFECT_PSIK_CHAOS_CLOCK")
if _file and os.path.exists(_file):
    with open(_file, "rb") as _opened:
        _ahead = mmap.mmap(_opened.fileno(), 8, access=mmap.ACCESS_READ)
    _time, _time_ns, _unpack = time.time, time.time_ns, struct.Struct("d").unpack

    def _jumping() -> float:
        return float(_time() + _unpack(_ahead[:8])[0])

    def _jumping_ns() -> int:
        return _time_ns() + int(_unpack(_ahead[:8])[0] * 1e9)

    time.time, time.time_ns = _jumping, _jumping_ns
