"""The clients of one pool: made by ``connect``, owned by one worker at a time or shared by all, dropped after an exception."""

from __future__ import annotations

import logging
import threading
from typing import Any

from rambla.handlers import Traits
from rambla.outcome import show
from rambla.safety import Parameters

__all__ = ["Clients", "Lease"]

log = logging.getLogger("rambla")

# Clients that a fork copied into a child: their destructors must not speak on the parent's connections.
_inherited: list[Any] = []


class Lease:
    """One made client and how many workers use it; ``stale`` ones are disconnected by the last who lets go."""

    __slots__ = ("client", "stale", "users")

    def __init__(self, client: Any) -> None:
        self.client = client
        self.users = 0
        self.stale = False


class Clients:
    """Hands out the clients of a pool. Called by its workers, each for itself, never with the pool's lock held."""

    def __init__(self, traits: Traits, connection: Parameters) -> None:
        self._connect = traits.connect
        self._disconnect = traits.disconnect
        self._shared = traits.thread_safe
        self._connection = connection
        self._lock = threading.RLock()
        self._making = threading.Lock()  # one connect at a time where the client is shared
        self._common: Lease | None = None
        self._leases: set[Lease] = set()

    @property
    def needed(self) -> bool:
        """Whether the handler has clients at all."""
        return self._connect is not None

    def take(self) -> Lease:
        """A lease for one worker; connects when there is none to share. Blocks as long as ``connect`` does, raises what it raises."""
        if not self._shared:
            return self._make()
        with self._making:
            with self._lock:
                lease = self._common
                if lease is not None and not lease.stale:
                    lease.users += 1
                    return lease
            self._common = self._make()
            return self._common

    def give_back(self, lease: Lease, *, broken: bool = False) -> None:
        """Let go of a lease; ``broken`` ones are not handed out again. Disconnects when nobody else uses it."""
        with self._lock:
            lease.users -= 1
            if broken:
                lease.stale = True
            if self._common is lease and (lease.stale or not lease.users):
                self._common = None
            last = lease.users == 0
            if last:
                self._leases.discard(lease)
        if last:
            self._close(lease.client)

    def expire(self) -> None:
        """Mark all as stale: each worker lets go of its own before it takes more work (a restarted external server)."""
        with self._lock:
            for lease in self._leases:
                lease.stale = True
            self._common = None

    def forget(self) -> None:
        """In a forked child: leave the parent's connections alone, for as long as the child lives."""
        _inherited.append(self._leases)

    def _make(self) -> Lease:
        assert self._connect is not None
        lease = Lease(self._connect(self._connection))
        lease.users = 1
        with self._lock:
            self._leases.add(lease)
        return lease

    def _close(self, client: Any) -> None:
        if self._disconnect is None:
            return
        try:
            self._disconnect(client)
        except Exception as error:
            log.warning("disconnect raised, and the client is let go all the same: %s", show(error))
