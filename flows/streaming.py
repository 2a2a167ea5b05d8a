"""Streaming: a service job that processes the frames while the scan runs, and ends with the scan.

The service connects to the beamline, since compute nodes can usually open connections but not accept them. The end
of the stream ends the service, and its job completes. A failed scan, or a cancel of the flow run, cancels the job.
If this process dies, the stream ends, too. So no node is left idle.
"""

from __future__ import annotations

import asyncio
import json
import math
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.logging import get_run_logger
from pydantic import Field

from prefect_psik import (
    JobSpec,
    PsikBackend,
    ResourceSpec,
    WaitLimits,
    acancel_job,
    asubmit_job,
    await_for_job,
    await_for_start,
    cancel_psik_jobs,
)

SERVICE = Path(__file__).parent / "scripts" / "frame_service.py"
CONNECT_SECONDS = 60

Connections = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


@flow(name="streaming", flow_run_name="streaming {scan}", on_cancellation=[cancel_psik_jobs])
async def streaming(
    scan: str = "phantom",
    backend: str | None = None,
    address: str = "127.0.0.1",
    port: Annotated[int, Field(ge=0, le=65535)] = 0,
    frames: Annotated[int, Field(ge=1)] = 20,
    minutes: Annotated[int, Field(ge=1)] = 30,
    patience: timedelta = timedelta(minutes=10),
) -> list[float]:
    """Start a service at a facility, stream a scan through it, and end it with the scan.

    Args:
        scan: Name of the scan.
        backend: Name of a `psik-backend` block. Empty: this machine, without Globus or Slurm.
        address: Address at which compute nodes reach this machine. Anyone who can reach it can read the stream.
        port: Port to stream from; the facility must be able to reach it. 0: any free port.
        frames: How many frames the scan has.
        minutes: Longest time that the service may run, in minutes.
        patience: How long the service may wait in the queue before the scan is abandoned.

    Returns:
        The result of the service for each frame.
    """
    where = await PsikBackend.aload(backend) if backend else PsikBackend()
    connections = Connections()
    server = await asyncio.start_server(lambda *ends: connections.put_nowait(ends), address, port)
    async with server:
        port = server.sockets[0].getsockname()[1]
        service = JobSpec.from_script(
            SERVICE,
            environment={"STREAM": f"{address}:{port}"},
            resources=ResourceSpec(duration=minutes, exclusive_node_use=False),
        )
        limits = WaitLimits(queue=patience)
        handle = await asubmit_job(where, service, limits=limits)
        try:
            await await_for_start(handle, limits=limits)
            results = await take_scan(frames, connections)
        except Exception as err:
            status = await acancel_job(handle)
            raise RuntimeError(
                f"The scan {scan} was abandoned: {err} Outcome of the service: {status.message}"
            ) from err
        await await_for_job(handle)
    get_run_logger().info("The service processed %d frames of scan %s", len(results), scan)
    return results


async def take_scan(frames: int, connections: Connections) -> list[float]:
    """Stand in for the detector: send the frames, and collect the result for each."""
    try:
        reader, writer = await asyncio.wait_for(connections.get(), CONNECT_SECONDS)
    except TimeoutError:
        raise ConnectionError(f"The service did not connect within {CONNECT_SECONDS} s.") from None
    means = []
    try:
        for number in range(frames):
            frame = {"frame": number, "pixels": [math.sin(number + column) for column in range(256)]}
            writer.write(json.dumps(frame).encode() + b"\n")
            await writer.drain()
            answer = await reader.readline()
            if not answer:
                raise ConnectionError(f"The service disconnected at frame {number} of {frames}.")
            means.append(float(json.loads(answer)["mean"]))
    finally:
        writer.close()  # the end of the stream
    return means


if __name__ == "__main__":
    asyncio.run(streaming())
