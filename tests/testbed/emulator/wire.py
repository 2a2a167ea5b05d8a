"""The emulator's side of the broker: queues, exchanges, publishing, and one thread that consumes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pika  # type: ignore[import-untyped]
from pika.exceptions import AMQPError  # type: ignore[import-untyped]

from tests.testbed.emulator.capture import Capture
from tests.testbed.emulator.messages import Json

_VERSION = b"\x01"
_RETRY_SECONDS = 0.5
_DURABLE = 2
RESULTS = "results"
HEARTBEATS = "heartbeats"
RESULT_QUEUE_PREFIX = "group."

log = logging.getLogger(__name__)


def pack(message_type: str, data: Json) -> bytes:
    """Return a message in Globus Compute's packing: a version byte and a JSON envelope."""
    return _VERSION + json.dumps({"message_type": message_type, "data": data}).encode()


def unpack(body: bytes) -> Json:
    """Return the data of a packed message."""
    data: Json = json.loads(body[1:])["data"]
    return data


class Wire:
    """Two connections to the broker: one publishes under a lock, one consumes in its own thread."""

    def __init__(self, url: str, capture: Capture) -> None:
        self._url = url
        self._capture = capture
        self._mutex = threading.RLock()
        self._connection: pika.BlockingConnection | None = None
        self._channel: Any = None
        self._declared: set[str] = set()

    def connection_url(self) -> str:
        """Return the URL that endpoints and clients are given."""
        return self._url

    def consume(self, handlers: Mapping[str, Callable[[bytes], None]]) -> None:
        """Hand the messages of these queues to their handlers, for ever, over broker restarts.

        A message is acknowledged after its handler returned, so one that was not stored comes again.
        """
        threading.Thread(target=self._consume, args=(handlers,), name="consumer", daemon=True).start()

    def declare(self, queue: str) -> None:
        """Make a durable queue, if this process has not made it yet."""
        if queue not in self._declared:
            self._with_channel(lambda channel: channel.queue_declare(queue, durable=True))
            self._declared.add(queue)

    def purge(self, queue: str) -> None:
        """Empty a queue."""
        self.declare(queue)
        self._with_channel(lambda channel: channel.queue_purge(queue))

    def publish(
        self, kind: str, queue: str, body: bytes, *, headers: Json | None = None, json_body: bool = False
    ) -> None:
        """Put a message into a queue and wait until the broker has it."""
        properties = pika.BasicProperties(
            delivery_mode=_DURABLE,
            timestamp=int(time.time()),
            headers=headers or {},
            content_type="application/json" if json_body else None,
        )
        self._capture.write(kind, queue, body)
        self._with_channel(
            lambda channel: channel.basic_publish(
                exchange="", routing_key=queue, body=body, properties=properties, mandatory=True
            )
        )

    def _with_channel(self, act: Callable[[Any], object]) -> None:
        """Run something on the publishing channel; open it again once when the broker has dropped it."""
        with self._mutex:
            for last_try in (False, True):
                try:
                    act(self._open())
                    return
                except AMQPError:
                    self._connection = None
                    if last_try:
                        raise

    def _open(self) -> Any:
        if self._connection is None or not self._connection.is_open or not self._channel.is_open:
            self._connection = self._connect()
            self._channel = self._connection.channel()
            self._channel.confirm_delivery()
        return self._channel

    def _connect(self) -> pika.BlockingConnection:
        parameters = pika.URLParameters(self._url)
        parameters.heartbeat = 0
        return pika.BlockingConnection(parameters)

    def _consume(self, handlers: Mapping[str, Callable[[bytes], None]]) -> None:
        while True:
            try:
                channel = self._connect().channel()
                for queue, handler in handlers.items():
                    channel.exchange_declare(queue, "topic", durable=True)
                    channel.queue_declare(queue, durable=True)
                    channel.queue_bind(queue, queue, "#")
                    channel.basic_consume(queue, self._receiver(queue, handler))
                channel.start_consuming()
            except (AMQPError, OSError) as err:
                log.warning("broker away (%s: %s), trying again", type(err).__name__, err)
            time.sleep(_RETRY_SECONDS)

    def _receiver(self, queue: str, handler: Callable[[bytes], None]) -> Callable[[Any, Any, Any, bytes], None]:
        def receive(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            self._capture.write(queue.removesuffix("s"), queue, body)
            try:
                handler(body)
            except (ValueError, KeyError):
                log.exception("a message in %s is not understood and dropped", queue)
            channel.basic_ack(method.delivery_tag)

        return receive
