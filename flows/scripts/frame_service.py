#!/usr/bin/env python3
"""Work on the frames of a scan as they come, until the stream ends.

Environment:

    STREAM   `HOST:PORT` that sends one frame a line, `{"frame": N, "pixels": [...]}`, and takes one answer a line,
             `{"frame": N, "mean": M}`.

Exits with 0 at the end of the stream, and with 1 if the stream cannot be reached or breaks.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def main() -> None:
    """Connect, answer each frame, and end with the stream."""
    host, port = os.environ["STREAM"].rsplit(":", 1)
    done = 0
    try:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.settimeout(None)
            stream = connection.makefile("rw", encoding="utf-8")
            for line in stream:
                frame = json.loads(line)
                mean = sum(frame["pixels"]) / len(frame["pixels"])
                print(json.dumps({"frame": frame["frame"], "mean": mean}), file=stream, flush=True)
                done += 1
    except OSError as err:
        sys.exit(f"The stream {host}:{port} cannot be read: {err}.")
    print(f"The stream ended after {done} frames.")


if __name__ == "__main__":
    main()
