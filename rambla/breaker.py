"""The breaker of one connection: after so many failures in a row nothing is tried for a while, then one attempt is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

__all__ = ["Breaker"]


class Breaker:
    """Shared by the pools of one connection. ``failures`` in a row open it for ``open_for`` seconds; then it is half open,
    and admits one attempt: its success closes the breaker, its failure opens it again.

    Any thread may call it; nothing here blocks. ``on_change`` functions are called without its lock.
    """

    def __init__(self, failures: int, open_for: float) -> None:
        self.failures = failures
        self.open_for = open_for
        self.state: Literal["closed", "open", "half-open"] = "closed"
        self._lock = threading.RLock()
        self._count = 0
        self._until = 0.0
        self._probe: object = None
        self._listeners: list[Callable[[], None]] = []

    def listen(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change`` whenever attempts may be admitted again."""
        self._listeners.append(on_change)

    def admit(self, who: object) -> float:
        """0 when ``who`` may make an attempt now, else the seconds after which to ask again (`listen` tells earlier).

        In the half-open state the first who asks becomes the probe, until `record` or `release`.
        """
        with self._lock:
            if self.state == "closed":
                return 0.0
            left = self._until - time.monotonic()
            if self.state == "open" and left <= 0:
                self.state = "half-open"
            if self.state == "half-open" and self._probe in (None, who):
                self._probe = who
                return 0.0
            return max(left, self.open_for) if self.state == "half-open" else left

    def release(self, who: object) -> None:
        """``who`` makes no attempt after all; another may be the probe."""
        with self._lock:
            changed = self._probe is who and who is not None
            if changed:
                self._probe = None
        if changed:
            self._tell()

    def record(self, who: object, ok: bool) -> None:
        """Note how an attempt of ``who`` ended."""
        with self._lock:
            probe = self._probe is who
            if self.state == "closed":
                self._count = 0 if ok else self._count + 1
                if self._count >= self.failures:
                    self._open()
                return
            if not probe:
                return  # began before it opened
            self._probe = None
            if ok:
                self.state, self._count = "closed", 0
            else:
                self._open()
        self._tell()

    def _open(self) -> None:
        self.state = "open"
        self._until = time.monotonic() + self.open_for

    def _tell(self) -> None:
        for on_change in self._listeners:
            on_change()

    def __repr__(self) -> str:
        return f"<Breaker {self.state} | {self._count} of {self.failures} failures, open for {self.open_for:g} s>"
