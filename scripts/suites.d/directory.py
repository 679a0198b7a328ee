#!/usr/bin/env python3
"""A large directory: made by several processes, listed while entries come and go, its positions used again, removed.

    directory.py FOLDER ENTRIES

Every entry that is there for the whole of a listing must appear exactly once, and a position must lead to the same entry
later, whatever came and went in between.
"""
import ctypes
import os
import random
import subprocess
import sys
import time
from multiprocessing import Process, Value

MAKERS = 8


class Dirent(ctypes.Structure):
    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("position", ctypes.c_int64),
        ("bytes", ctypes.c_uint16),
        ("kind", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    ]


libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.readdir.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.closedir.argtypes = [ctypes.c_void_p]


class Listing:
    def __init__(self, folder):
        self.stream = libc.opendir(folder.encode())
        if not self.stream:
            raise OSError(ctypes.get_errno(), folder)

    def next(self):
        """The next name and the position behind it; None at the end."""
        ctypes.set_errno(0)
        entry = libc.readdir(self.stream)
        if not entry:
            if ctypes.get_errno():
                raise OSError(ctypes.get_errno(), "readdir")
            return None
        return entry.contents.name.decode(), libc.telldir(self.stream)

    def seek(self, position):
        libc.seekdir(self.stream, position)

    def close(self):
        libc.closedir(self.stream)


def make(folder, first, last):
    for number in range(first, last):
        os.mknod(f"{folder}/entry-{number:07}", 0o644)


def churn(folder, end):
    number = 0
    while not end.value:
        os.mknod(f"{folder}/churn-{number}", 0o644)
        if number >= 50:
            os.unlink(f"{folder}/churn-{number - 50}")
        number += 1
    for left in range(max(0, number - 50), number):
        os.unlink(f"{folder}/churn-{left}")


def in_processes(work, parts):
    processes = [Process(target=work, args=part) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode != 0:
            sys.exit("a process failed")


def names_of(folder):
    """How often each name is listed."""
    counts = {}
    listing = Listing(folder)
    while entry := listing.next():
        counts[entry[0]] = counts.get(entry[0], 0) + 1
    listing.close()
    return counts


def check_listing(folder, entries):
    counts = names_of(folder)
    wrong = [n for n in (f"entry-{number:07}" for number in range(entries)) if counts.get(n) != 1]
    if wrong:
        sys.exit(f"{len(wrong)} of {entries} entries are not listed once: {wrong[:5]}")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        sys.exit(f"listed more than once: {twice[:5]}")


def check_positions(folder, entries):
    """Notes positions on the way, and comes back to them after entries came and went, through another stream too."""
    listing = Listing(folder)
    order, noted = [], {}
    while entry := listing.next():
        name, position = entry
        if name.startswith("entry-"):
            order.append(name)
            if random.random() < 200 / entries:
                noted[position] = len(order)
    gone = set(random.sample(order, min(1000, entries // 10)))
    for name in gone:
        os.unlink(f"{folder}/{name}")
    for number in range(1000):
        os.mknod(f"{folder}/later-{number}", 0o644)
    again = Listing(folder)
    for stream in (listing, again):
        for position, at in random.sample(sorted(noted.items()), min(50, len(noted))):
            expected = [name for name in order[at : at + 2000] if name not in gone][:20]
            stream.seek(position)
            found = []
            while len(found) < len(expected) and (entry := stream.next()):
                # Whether an old stream still gives what is gone is left open.
                if entry[0].startswith("entry-") and not (stream is listing and entry[0] in gone):
                    found.append(entry[0])
            if found != expected:
                wrong = [pair for pair in zip(found, expected) if pair[0] != pair[1]]
                about = [(name in gone, order.index(name) - at) for name in (wrong or [[found[-1]]])[0]]
                which = "the old stream" if stream is listing else "a new stream"
                sys.exit(f"{which}, position {position}, found and expected: {wrong[:3]} (gone, distance: {about})")
        stream.close()
    return entries - len(gone) + 1000


def timed(what, count, work):
    start = time.monotonic()
    result = work()
    seconds = time.monotonic() - start
    print(f"{what}: {seconds:.1f} s, {count / max(seconds, 0.001):,.0f}/s", flush=True)
    return result


def main():
    folder, entries = sys.argv[1], int(sys.argv[2])
    random.seed(entries)
    os.mkdir(folder)
    step = -(-entries // MAKERS)
    parts = [(folder, first, min(first + step, entries)) for first in range(0, entries, step)]
    timed("made", entries, lambda: in_processes(make, parts))
    end = Value("b", 0)
    churning = Process(target=churn, args=(folder, end))
    churning.start()
    timed("listed while entries came and went", entries, lambda: check_listing(folder, entries))
    end.value = 1
    churning.join()
    if churning.exitcode != 0:
        sys.exit("the process that made and removed entries failed")
    timed("listed again", entries, lambda: check_listing(folder, entries))
    left = timed("positions checked", entries, lambda: check_positions(folder, entries))
    if os.stat(folder).st_size != left:
        sys.exit(f"st_size is {os.stat(folder).st_size}, not {left}")
    sample = [f"{folder}/entry-{random.randrange(entries):07}" for _ in range(2000)]
    timed("looked up", len(sample), lambda: [os.path.lexists(path) for path in sample])
    timed("removed", left, lambda: subprocess.run(["find", folder, "-delete"], check=True))
    if os.path.exists(folder):
        sys.exit("it is still there")


main()
