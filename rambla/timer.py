"""One thread for everything that is to happen later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Timer"]

log = logging.getLogger("rambla")


class Timer:
    """Calls functions at their time, one after the other, on a daemon thread named ``rambla-timer``. Idle, it sleeps without end.

    It is for this library's own short functions: foreign code would hold up all others.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._heap: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Start the thread; RuntimeError when none can be started. Twice is allowed."""
        with self._lock:
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(target=self._run, name="rambla-timer", daemon=True)
                thread.start()
                self._thread = thread

    def stop(self, timeout: float = 1.0) -> bool:
        """Forget what waits and end the thread, within ``timeout`` seconds; True when it has ended."""
        with self._lock:
            self._stopping = True
            self._heap.clear()
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def at(self, due: float, fn: Callable[..., Any], *args: Any) -> None:
        """Call ``fn(*args)`` when `time.monotonic` is ``due``, or at once when it has passed. Any thread; never blocks."""
        with self._lock:
            entry = (due, next(self._order), fn, args)
            heapq.heappush(self._heap, entry)
            if self._heap[0] is entry:
                self._changed.notify()

    def __len__(self) -> int:
        return len(self._heap)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            try:
                entry[2](*entry[3])
            except Exception:
                log.exception("a timed call failed")
            del entry  # else it holds what it was called with until the next is due

    def _next(self) -> tuple[float, int, Callable[..., Any], tuple[Any, ...]] | None:
        with self._lock:
            while not self._stopping:
                left = self._heap[0][0] - time.monotonic() if self._heap else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._heap)
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            return None

    def __repr__(self) -> str:
        return f"<Timer | {len(self)} waiting{'' if self._thread else ', not started'}>"
