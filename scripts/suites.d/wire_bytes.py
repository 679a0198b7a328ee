#!/usr/bin/env python3
"""Bytes on this namespace's loopback per replica for a 4 KiB overwrite + fsync, averaged over 100 on warm connections."""
import os, random, sys

path, replicas = sys.argv[1], int(sys.argv[2])


def loopback_bytes():
    line = next(line for line in open("/proc/net/dev") if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[0])


rng = random.Random(4)
fd = os.open(path, os.O_RDWR)
middle = os.fstat(fd).st_size // 2


def overwrite(count):
    for _ in range(count):
        os.pwrite(fd, rng.randbytes(4096), middle + rng.randrange(4096) * 4096)
        os.fsync(fd)


overwrite(20)
before = loopback_bytes()
overwrite(100)
each = (loopback_bytes() - before) / 100 / replicas
print(f"{each:.0f} bytes per replica and overwrite (limit 12288)")
sys.exit(0 if each < 12288 else "too many bytes")
