#!/usr/bin/env python3
"""Two mounts of one cluster: what one writes the other reads at once, and appends of both to one log stay whole."""
import os, subprocess, sys

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


alternate()
append()
print(f"{rounds} alternations and 2 x {rounds} appended lines: all seen, none torn")
