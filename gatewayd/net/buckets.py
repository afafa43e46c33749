"""Where leaky buckets live: in one process, or in memory that all workers share.

Owns: storage, exclusion between processes, eviction. Does not own: the arithmetic and the keys
(core.ratelimit), the clock: `now_ms` is a monotonic time that all processes read alike.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import time
from fcntl import lockf
from typing import Protocol

from gatewayd.core.ratelimit import KEY_SIZE, take
from gatewayd.net.sealed import sealed


class BucketStore(Protocol):
    def take(self, key: bytes, now_ms: int, rate: int, burst: int) -> int:
        """Ask the bucket for one request: 0 is yes, else milliseconds until one would pass.

        `key` has KEY_SIZE bytes, `rate` is in thousandths of a request per second.
        """
        ...


class LocalStore:
    """Buckets of a single process; the least recently used goes when there are `entries`."""

    def __init__(self, entries: int = 131_072) -> None:
        self._entries = entries
        self._buckets: dict[bytes, tuple[int, int]] = {}  # oldest use first

    def take(self, key: bytes, now_ms: int, rate: int, burst: int) -> int:
        buckets = self._buckets
        bucket = buckets.pop(key, None)
        if bucket is None:
            if len(buckets) >= self._entries:
                del buckets[next(iter(buckets))]
            buckets[key] = (0, now_ms)
            return 0
        wait_ms, excess, last_ms = take(bucket[0], bucket[1], now_ms, rate, burst)
        buckets[key] = (excess, last_ms)
        return wait_ms


_MAGIC = b"gwbkt-01"
_HEADER = struct.Struct("=8sQQ")  # magic, sets, mixer
_DATA = mmap.PAGESIZE
_WAYS = 8
_BUCKET = struct.Struct(f"={KEY_SIZE}sqqq")  # key, excess, last_ms, used_ms
_STATE = struct.Struct("=qq")  # excess, last_ms
_CHANGED = struct.Struct("=qqq")
_USED = struct.Struct("=q")
_ALL_USED = struct.Struct("=" + f"{KEY_SIZE + _STATE.size}xq" * _WAYS)
_SET_SIZE = _BUCKET.size * _WAYS
_MAX_PLACES = 4096
_HASH = struct.Struct("=Q")
_MASK = 2**64 - 1
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_LET_GO = fcntl.LOCK_UN

# Naps while another process holds a set, in seconds: 60 ms in all. A holder needs about 2 µs, so
# who finds a set taken twice waits for a process that lost its CPU in between, or was stopped.
_NAPS = (0.0, 0.0, 0.0, 0.000_05, 0.000_1, 0.000_2, 0.000_5) + (0.001,) * 59


class SharedStore:
    """Buckets in a memfd, exact across processes: made by control, attached by each worker.

    A set-associative table: a key may lie in any of the 8 places of its set, and the least
    recently used of these makes room. Each set is guarded by a record lock on one byte of the
    descriptor: the kernel takes that back from a process that dies, which a futex or a
    semaphore in the memory would not survive. The lock is waited for only briefly; a process
    that was stopped while it held one costs the others exactness for that set, not their time.

    Record locks belong to the process: two threads, or two stores on one memfd in the same
    process, do not exclude each other.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        magic, sets, self._mixer = _HEADER.unpack_from(self._map)
        if magic != _MAGIC or len(self._map) != _DATA + sets * _SET_SIZE:
            raise ValueError("not a bucket table")
        self._sets: int = sets
        self._shift = 64 - (sets.bit_length() - 1)
        self._stuck: set[int] = set()  # sets whose holder did not let go in time
        self._alone = False
        self._places: dict[bytes, int] = {}  # where keys lay when they were last looked for

    @classmethod
    def create(cls, entries: int = 131_072) -> SharedStore:
        """An empty table; `entries` is 8 times a power of two. 40 bytes each, as they are used."""
        sets = entries // _WAYS
        if sets * _WAYS != entries or sets & (sets - 1) or not sets:
            raise ValueError(f"{entries} entries are not {_WAYS} times a power of two")
        fd = sealed("gatewayd-buckets", _DATA + sets * _SET_SIZE)
        # The mixer is a secret: who could tell which keys share a set could have a bucket evicted.
        os.pwrite(fd, _HEADER.pack(_MAGIC, sets, secrets.randbits(64) | 1), 0)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int, *, alone: bool = False) -> SharedStore:
        """Takes over `fd`: `close` closes it. ValueError when it is not a table of `create`.

        `alone`: no other process asks, so no lock is taken (half of what a decision costs).
        """
        store = cls(fd)
        store._alone = alone
        return store

    def take(self, key: bytes, now_ms: int, rate: int, burst: int) -> int:
        at = self._places.get(key) or self._set_of(key)
        if self._alone:
            return self._decide(at, key, now_ms, rate, burst)
        number = (at - _DATA) // _SET_SIZE
        try:
            lockf(self.fd, _TRY, 1, number)
        except OSError:
            if not self._wait(number):
                return self._decide(at, key, now_ms, rate, burst)
        else:
            if self._stuck:
                self._stuck.discard(number)
        try:
            return self._decide(at, key, now_ms, rate, burst)
        finally:
            lockf(self.fd, _LET_GO, 1, number)

    def _set_of(self, key: bytes) -> int:
        """Where the set begins in which the key lies, or will."""
        number: int = (_HASH.unpack_from(key)[0] * self._mixer & _MASK) >> self._shift
        return _DATA + number * _SET_SIZE

    def _decide(self, at: int, key: bytes, now_ms: int, rate: int, burst: int) -> int:
        """`at` is a place of the key's set: where it lay last, or the first."""
        table = self._map
        held, excess, last_ms, _ = _BUCKET.unpack_from(table, at)
        if held != key:
            at, is_new = self._find(at, key)
            if is_new:
                _BUCKET.pack_into(table, at, key, 0, now_ms, now_ms)
                return 0
            excess, last_ms = _STATE.unpack_from(table, at + KEY_SIZE)
        wait_ms, excess, last_ms = take(excess, last_ms, now_ms, rate, burst)
        if wait_ms:
            _USED.pack_into(table, at + KEY_SIZE + _STATE.size, now_ms)
        else:
            _CHANGED.pack_into(table, at + KEY_SIZE, excess, last_ms, now_ms)
        return wait_ms

    def _find(self, at: int, key: bytes) -> tuple[int, bool]:
        """The place of a key in the set around `at`, and whether it is one that the least recently
        used is to leave for it."""
        table = self._map
        start = at - (at - _DATA) % _SET_SIZE
        end = start + _SET_SIZE
        found = table.find(key, start, end)
        while found >= 0 and (found - start) % _BUCKET.size:
            found = table.find(key, found + 1, end)
        is_new = found < 0
        if is_new:
            used = _ALL_USED.unpack_from(table, start)
            found = start + used.index(min(used)) * _BUCKET.size
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[key] = found
        return found, is_new

    def _wait(self, number: int) -> bool:
        """Try again for a bounded while. False: decide without the lock.

        Blocks the process, so it happens once per stopped holder: until the set is found free
        again, later requests try once and go on.
        """
        if number in self._stuck:
            return False
        for nap in _NAPS:
            time.sleep(nap)
            try:
                lockf(self.fd, _TRY, 1, number)
            except OSError:
                continue
            return True
        self._stuck.add(number)
        return False

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)

    def __repr__(self) -> str:
        return f"<SharedStore {self._sets} sets x {_WAYS}, fd {self.fd}>"
