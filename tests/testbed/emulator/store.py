"""What the emulator remembers across a restart: endpoints, functions, task groups and tasks, in SQLite."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.testbed.emulator.messages import Json

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS document (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS task (
    id TEXT PRIMARY KEY, owner TEXT, task_group TEXT, endpoint TEXT, runner TEXT, answer TEXT
);
CREATE INDEX IF NOT EXISTS by_group ON task (task_group);
CREATE INDEX IF NOT EXISTS by_runner ON task (runner) WHERE answer IS NULL;
"""


@dataclass(frozen=True)
class Task:
    """One function call. Its answer is None until a result came, and is kept for ever after."""

    id: str
    owner: str
    task_group: str
    endpoint: str
    runner: str
    """The user endpoint that is to run it."""
    answer: Json | None = None


class Store:
    """Thread-safe, with every change on disk before it is reported done."""

    def __init__(self, path: Path) -> None:
        self._mutex = threading.RLock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript(_SCHEMA)

    def put(self, kind: str, key: str, body: Json) -> None:
        """Keep a document, in place of an older one of this key."""
        with self._mutex:
            self._database.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?)", (kind, key, json.dumps(body))
            )

    def get(self, kind: str, key: str) -> Json | None:
        """Return a document."""
        with self._mutex:
            row = self._database.execute(
                "SELECT body FROM document WHERE kind = ? AND id = ?", (kind, key)
            ).fetchone()
        if row is None:
            return None
        body: Json = json.loads(row[0])
        return body

    def all(self, kind: str) -> dict[str, Json]:
        """Return all documents of a kind."""
        with self._mutex:
            rows = self._database.execute("SELECT id, body FROM document WHERE kind = ?", (kind,)).fetchall()
        return {key: json.loads(body) for key, body in rows}

    def delete(self, kind: str, key: str) -> None:
        """Forget a document."""
        with self._mutex:
            self._database.execute("DELETE FROM document WHERE kind = ? AND id = ?", (kind, key))

    def add_tasks(self, tasks: Iterable[Task]) -> None:
        """Keep new tasks, all or none."""
        rows = [{**asdict(task), "answer": None} for task in tasks]
        with self._mutex:
            self._database.execute("BEGIN")
            self._database.executemany(
                "INSERT INTO task VALUES (:id, :owner, :task_group, :endpoint, :runner, :answer)", rows
            )
            self._database.execute("COMMIT")

    def answer(self, task_id: str, answer: Json) -> bool:
        """Keep a task's answer unless it has one: the first counts. Says whether this was the first."""
        with self._mutex:
            done = self._database.execute(
                "UPDATE task SET answer = ? WHERE id = ? AND answer IS NULL", (json.dumps(answer), task_id)
            )
            return done.rowcount == 1

    def task(self, task_id: str) -> Task | None:
        """Return a task."""
        found = self._tasks("id = ?", task_id)
        return found[0] if found else None

    def tasks_of_group(self, task_group: str) -> list[Task]:
        """Return the tasks of a group."""
        return self._tasks("task_group = ?", task_group)

    def unanswered(self, *, runner: str) -> list[Task]:
        """Return the tasks of a user endpoint that have no answer yet."""
        return self._tasks("runner = ? AND answer IS NULL", runner)

    def _tasks(self, condition: str, value: str) -> list[Task]:
        with self._mutex:
            rows = self._database.execute(f"SELECT * FROM task WHERE {condition}", (value,)).fetchall()
        return [
            Task(key, owner, group, endpoint, runner, json.loads(answer) if answer else None)
            for key, owner, group, endpoint, runner, answer in rows
        ]
