"""A `concurrent.futures.Executor` of daemon threads, whose shutdown keeps a deadline."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Executor"]

T = TypeVar("T")


class _Call:
    __slots__ = ("args", "fn", "future", "kwargs")

    def __init__(self, future: concurrent.futures.Future[Any], fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.future, self.fn, self.args, self.kwargs = future, fn, args, kwargs

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.fn(*self.args, **self.kwargs)
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Executor(concurrent.futures.Executor):
    """At most ``max_workers`` daemon threads, started when there is something to run.

    Unlike the standard library's it is not shut at interpreter exit, and a thread that hangs holds up nothing: `shutdown` has a
    timeout, and `abandon` lets another thread take its place.
    """

    def __init__(self, max_workers: int, thread_name_prefix: str = "rambla") -> None:
        self._max_workers = max_workers
        self._prefix = thread_name_prefix
        self._changed = threading.Condition(threading.RLock())
        self._calls: deque[_Call] = deque()
        self._threads: set[threading.Thread] = set()
        self._abandoned: set[threading.Thread] = set()
        self._idle = 0  # waiting threads that no call has claimed
        self._number = 0
        self._shutdown = False

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """The threads there are, the abandoned ones not counted."""
        return tuple(self._threads)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Run ``fn(*args, **kwargs)`` on a thread of its own as long as there is room, else as soon as one is free.

        Raises RuntimeError after a shutdown, and when a thread is needed and cannot be started; nothing is queued then.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        with self._changed:
            if self._shutdown:
                raise RuntimeError(f"{self!r} is shut down")
            call = _Call(future, fn, args, kwargs)
            self._calls.append(call)
            if self._idle:
                self._idle -= 1  # claimed here, so that the next submit does not count on it
                self._changed.notify()
            elif len(self._threads) < self._max_workers:
                try:
                    self._start()
                except BaseException:
                    self._calls.remove(call)
                    raise
        return future

    def abandon(self, thread: threading.Thread | None = None) -> None:
        """Count a thread (the calling one by default) no more: it hangs, and another may start. Should it return, it ends."""
        thread = thread or threading.current_thread()
        with self._changed:
            if thread in self._threads:
                self._threads.discard(thread)
                self._abandoned.add(thread)
                if self._calls and not self._idle and not self._shutdown:
                    self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> bool:  # type: ignore[override]
        """Take no more calls; wait for the threads, at most ``timeout`` seconds (None: without end). True when all have ended.

        It does not wait for the thread that calls it, nor for abandoned ones.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._shutdown = True
            if cancel_futures:
                while self._calls:
                    self._calls.popleft().future.cancel()
            self._changed.notify_all()
            threads = self._threads - {threading.current_thread()}
        if wait:
            for thread in threads:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def reset(self) -> None:
        """In a forked child: the threads and the calls are the parent's; begin empty, with a new lock."""
        self.__init__(self._max_workers, self._prefix)  # type: ignore[misc]

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._prefix}_{self._number}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except BaseException:
            self._threads.discard(thread)
            raise
        self._number += 1

    def _run(self) -> None:
        me = threading.current_thread()
        while (call := self._next(me)) is not None:
            call.run()
            del call

    def _next(self, me: threading.Thread) -> _Call | None:
        with self._changed:
            while me not in self._abandoned:
                if self._calls:
                    return self._calls.popleft()
                if self._shutdown:
                    break
                self._idle += 1
                # Woken means claimed, and counted as idle no more; a busy thread may still have been quicker to the call.
                self._changed.wait()
            self._threads.discard(me)
            self._abandoned.discard(me)
            return None

    def __repr__(self) -> str:
        hung = f", {len(self._abandoned)} abandoned" if self._abandoned else ""
        return f"<Executor {self._prefix!r} {len(self._threads)} of {self._max_workers} threads{hung} | {len(self._calls)} queued>"
