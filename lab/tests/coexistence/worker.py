"""redlock-py and redis-py's Lock as a program: worker.py redlock|redis URL...

It reads commands and writes one answer for each; see program.rs.
"""

import sys

import redis
import redlock


class Redlock:
    """redlock-py: a majority of the nodes. It has no call that extends a lock."""

    def __init__(self, urls):
        self.once = redlock.Redlock(urls, retry_count=1)
        self.patient = redlock.Redlock(urls, retry_count=sys.maxsize)
        self.locks = {}  # the last lock of each name, also after its release

    def acquire(self, locks, name, ttl):
        lock = locks.lock(name, ttl)
        if lock:
            self.locks[name] = lock
        return lock

    def do_try(self, name, ttl):
        return self.acquire(self.once, name, ttl)

    def do_wait(self, name, ttl):
        return self.acquire(self.patient, name, ttl)

    def do_release(self, name, _):
        self.once.unlock(self.locks[name])
        return True  # It does not say whether the lock was held.


class Lock:
    """redis-py's Lock: one node."""

    def __init__(self, urls):
        (url,) = urls
        self.client = redis.Redis.from_url(url)
        self.locks = {}

    def acquire(self, name, ttl, blocking):
        lock = self.client.lock(name, timeout=ttl / 1000)
        if lock.acquire(blocking=blocking):
            self.locks[name] = lock
            return True
        return False

    def do_try(self, name, ttl):
        return self.acquire(name, ttl, False)

    def do_wait(self, name, ttl):
        return self.acquire(name, ttl, True)

    def do_extend(self, name, ttl):
        return self.locks[name].extend(ttl / 1000, replace_ttl=True)

    def do_release(self, name, _):
        self.locks[name].release()
        return True


def main():
    worker = {"redlock": Redlock, "redis": Lock}[sys.argv[1]](sys.argv[2:])
    for line in sys.stdin:
        verb, name, *ttl = line.split()
        try:
            done = getattr(worker, "do_" + verb)(name, int(ttl[0]) if ttl else 0)
            print("yes" if done else "no", flush=True)
        except (redis.RedisError, redlock.MultipleRedlockException) as error:
            print(f"no: {type(error).__name__}: {error}", flush=True)


main()
