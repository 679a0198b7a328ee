#!/usr/bin/env python3
"""Two mounts of one cluster: what one writes the other reads at once, appends of both to one log stay whole, and looking at
a file that the other writes does not make it flush. Prints the rates."""
import os, subprocess, sys, threading, time

first, second, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])


def alternate():
    name = "alternate"
    a, b = os.open(f"{first}/{name}", os.O_RDWR | os.O_CREAT, 0o644), os.open(f"{second}/{name}", os.O_RDWR)
    for number in range(rounds):
        writer, reader = (a, b) if number % 2 == 0 else (b, a)
        stamp = b"%08d" % number * 64
        os.pwrite(writer, stamp, (number % 7) * 1000)
        seen = os.pread(reader, len(stamp), (number % 7) * 1000)
        if seen != stamp:
            raise SystemExit(f"round {number}: the other mount read {seen[:16]!r}, written was {stamp[:16]!r}")
        with open(f"{second if number % 2 == 0 else first}/{name}", "rb") as f:
            f.seek((number % 7) * 1000)
            if f.read(len(stamp)) != stamp:
                raise SystemExit(f"round {number}: a new handle on the other mount read something else")
    os.close(a)
    os.close(b)


APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for n in range(int(sys.argv[3])):
    line = f"{sys.argv[2]} {n} ".ljust(90, "x") + "\\n"
    assert os.write(fd, line.encode()) == len(line)
os.close(fd)
"""


def append():
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, f"{mount}/log", tag, str(rounds)]) for mount, tag in ((first, "first"), (second, "second"))]
    if any([w.wait() for w in writers]):
        raise SystemExit("an appender failed")
    for mount in first, second:
        lines = open(f"{mount}/log").read().splitlines()
        for tag in "first", "second":
            numbers = [int(line.split()[1]) for line in lines if line.startswith(tag + " ") and len(line) == 90]
            if numbers != list(range(rounds)):
                raise SystemExit(f"on {mount}: the lines of {tag} are not whole and in order ({len(numbers)} of {rounds})")
        if len(lines) != 2 * rounds:
            raise SystemExit(f"on {mount}: {len(lines)} lines, expected {2 * rounds}")


def look():
    """Stats of a file while the other mount writes it: each sees at least what was written before, and none waits for it."""
    path, written, stop = "looked-at", [0], threading.Event()
    fd = os.open(f"{first}/{path}", os.O_WRONLY | os.O_CREAT, 0o644)

    def write():
        while not stop.is_set():
            os.write(fd, b"w" * 4096)
            written[0] += 4096

    writer = threading.Thread(target=write)
    writer.start()
    times, end = [], time.monotonic() + 3
    while time.monotonic() < end:
        before, begun = written[0], time.monotonic()
        size = os.stat(f"{second}/{path}").st_size
        times.append(time.monotonic() - begun)
        if size < before:
            raise SystemExit(f"{before} bytes were written, and the other mount says {size}")
    stop.set()
    writer.join()
    os.close(fd)
    times.sort()
    return len(times) / 3, times[len(times) // 2], written[0] / 3


def rate(work, count):
    begun = time.monotonic()
    work()
    return count / (time.monotonic() - begun)


alternations = rate(alternate, rounds)
appends = rate(append, 2 * rounds)
looks, median, bytes_per_s = look()
print(
    f"sharing: {rounds} alternations at {alternations:.0f}/s, 2 x {rounds} appended lines at {appends:.0f}/s, all seen, none torn; "
    f"{looks:.0f} looks/s (median {median * 1000:.2f} ms) at a file that is written at {bytes_per_s / 2**20:.0f} MiB/s"
)
