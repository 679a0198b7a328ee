#!/usr/bin/env python3
"""Disks that fail, fill up or become slow, under real slaves: scripts/suites disks

    disks.py GODRIVE_BIN_DIR WORK_FOLDER

A cluster of five slaves with three replicas; the first slave has two disks, and its calls to the first one go through
disk_faults.c. In turn: its syncs become slow, then its reads; its reads fail, then its writes and syncs. Meanwhile files are written and
fsynced on one mount, and read on another one, which has nothing of them in its caches.

Slow: 30 s later the 99th percentile of the time to write and fsync a new file, and of the time to read one, is at most three times
what it was. Failed: the disk is taken out of service and shown, the slave's other disk goes on, everything that lay on it is copied
elsewhere, and all that was fsynced is read back.
"""
import hashlib, json, os, subprocess, sys, threading, time

SLAVES = 5
SYNC_MS = 700
READ_MS = 300
AT_ONCE_S = 30
RATIO_AT_MOST = 3.0
# Below this the ratio is noise.
LEAST_S = 0.010


def run(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
    return done.stdout


class Cluster:
    def __init__(self, binaries, work):
        self.godrive, self.slave = f"{binaries}/godrive", f"{binaries}/godrive-slave"
        self.home, self.mount, self.other = f"{work}/cluster", f"{work}/mnt", f"{work}/other"
        self.faults, self.shim = f"{work}/faults", f"{work}/disk_faults.so"
        os.makedirs(self.mount)
        os.makedirs(self.other)
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "disk_faults.c")
        run("cc", "-O2", "-shared", "-fPIC", "-o", self.shim, source, "-ldl")
        self.set_faults("")
        # Its own process makes the first slave start with the shim; the others are started as always.
        run(self.godrive, "up", "--dir", self.home, "--slaves", str(SLAVES), "--replicas", "3", "--mount", self.mount)
        self.stop_slave()
        self.add_disk()
        self.start_slave()
        run(self.godrive, "mount", "--dir", self.home, self.other)

    def stop_slave(self):
        self.folder = f"{self.home}/slave-1"
        pid = int(open(f"{self.folder}/pid").read())
        os.kill(pid, 15)
        wait_until("slave-1 has stopped", lambda: not os.path.exists(f"/proc/{pid}"), 20)

    def add_disk(self):
        folder = self.folder
        config = open(f"{folder}/config.toml").read()
        disks = [line for line in config.splitlines() if line.startswith("disks")][0]
        first = json.loads(disks.split("=", 1)[1])[0]
        second = os.path.join(os.path.dirname(os.path.join(folder, first)), "second-disk")
        os.makedirs(second)
        open(f"{folder}/config.toml", "w").write(config.replace(disks, f"disks = {json.dumps([first, second])}"))
        self.disk = os.path.realpath(os.path.join(folder, first))

    def start_slave(self):
        folder = self.folder
        environment = dict(os.environ, LD_PRELOAD=self.shim, GODRIVE_DISK_FAULTS=self.faults, GODRIVE_DISK=self.disk + "/")
        log = open(f"{folder}/log", "a")
        command = [self.slave, "--config", f"{folder}/config.toml"]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        open(f"{folder}/pid", "w").write(f"{process.pid}\n")
        # Reaped as soon as it ends, or nobody would see that it has.
        threading.Thread(target=process.wait, daemon=True).start()
        wait_until("slave-1 has two disks", lambda: any(len(node["disks"]) == 2 for node in self.status()["nodes"]), 20)
        wait_until("all slaves are alive", lambda: all(node["state"] == "alive" for node in self.status()["nodes"]), 30)

    def set_faults(self, text):
        with open(self.faults + ".new", "w") as file:
            file.write(text)
        os.rename(self.faults + ".new", self.faults)

    def status(self):
        return json.loads(run(self.godrive, "status", "--dir", self.home, "--json"))

    def end(self):
        run(self.godrive, "down", "--dir", self.home)


def wait_until(what, condition, deadline_s):
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {deadline_s} s")
        time.sleep(0.2)


def percentile(times, part):
    times = sorted(times)
    return times[min(len(times) - 1, int(len(times) * part))]


class Writer:
    """Makes files, each written and fsynced, and knows what is in them."""

    def __init__(self, mount):
        self.mount, self.sums, self.count = mount, {}, 0

    def one(self):
        self.count += 1
        name, data = f"file-{self.count}", os.urandom(16384)
        begun = time.monotonic()
        fd = os.open(f"{self.mount}/{name}", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        self.sums[name] = hashlib.sha256(data).digest()
        return time.monotonic() - begun

    def many(self, seconds):
        end, times = time.monotonic() + seconds, []
        while time.monotonic() < end:
            times.append(self.one())
        return times

    def check(self):
        for name in self.sums:
            self.verify(self.mount, name)

    def verify(self, mount, name):
        if hashlib.sha256(open(f"{mount}/{name}", "rb").read()).digest() != self.sums[name]:
            raise SystemExit(f"{mount}/{name} differs")


class Reader:
    """Reads what the writer has made on another mount, each file once."""

    def __init__(self, mount, writer):
        self.mount, self.writer, self.count = mount, writer, 0

    def many(self, seconds):
        # Each of four calls has files of its own.
        end, times, most = time.monotonic() + seconds, [], self.count + self.writer.count // 4
        while time.monotonic() < end and self.count < most:
            self.count += 1
            begun = time.monotonic()
            self.writer.verify(self.mount, f"file-{self.count}")
            times.append(time.monotonic() - begun)
        return times


def show(what, rows, fault):
    """The p99 of the last row, as a multiple of that of the first."""
    for name, times in rows:
        print(f"slow disk, {what}: {name}: {len(times)} files, median {percentile(times, 0.5) * 1000:.1f} ms, p99 {percentile(times, 0.99) * 1000:.1f} ms")
    ratio = percentile(rows[-1][1], 0.99) / max(percentile(rows[0][1], 0.99), LEAST_S)
    print(f"slow disk, {what}: p99 {ratio:.2f} times what it was, {AT_ONCE_S} s after a disk of one slave took {fault}")
    return ratio


def main(binaries, work):
    cluster = Cluster(binaries, work)
    try:
        writer = Writer(cluster.mount)
        writer.many(3)
        before = writer.many(10)
        cluster.set_faults(f"sync_ms {SYNC_MS}")
        during = writer.many(AT_ONCE_S)
        after = writer.many(15)
        rows = [("before", before), (f"the first {AT_ONCE_S} s", during), ("then", after)]
        ratios = [show("written", rows, f"{SYNC_MS} ms longer for each sync")]
        cluster.set_faults("")
        reader = Reader(cluster.other, writer)
        before = reader.many(3)
        cluster.set_faults(f"read_ms {READ_MS}")
        # There are not enough files to read all the time.
        during, _ = reader.many(2), time.sleep(AT_ONCE_S - 2)
        rows = [("before", before), ("the first 2 s", during), ("then", reader.many(3))]
        ratios.append(show("read", rows, f"{READ_MS} ms longer for each read"))
        cluster.set_faults("")
        wait_until("everything is healthy", lambda: healthy(cluster.status()), 120)

        cluster.set_faults("read_eio")
        reader.many(3)
        failed(cluster, "reads")
        cluster.set_faults("")
        cluster.stop_slave()
        cluster.start_slave()
        wait_until("everything is healthy", lambda: healthy(cluster.status()) and not failed_disks(cluster.status()), 120)
        cluster.set_faults("sync_eio write_eio")
        writer.many(10)
        failed(cluster, "writes and syncs")
        writer.check()
        print(f"failed disk: {len(writer.sums)} fsynced files were read back")
        if max(ratios) > RATIO_AT_MOST:
            raise SystemExit(f"the p99 was {max(ratios):.2f} times what it had been, more than {RATIO_AT_MOST}")
    finally:
        cluster.end()


def failed(cluster, calls):
    """One disk is, as these calls to it failed; what lay on it is elsewhere, and the slave goes on with its other one."""
    wait_until("the failed disk is shown", lambda: failed_disks(cluster.status()) == 1, 20)
    wait_until("all data is elsewhere", lambda: healthy(cluster.status()), 120)
    status = cluster.status()
    node = next(node for node in status["nodes"] if len(node["disks"]) == 2)
    disks = [disk["health"] for disk in node["disks"]]
    print(f"failed disk ({calls}): {disks}, the slave is {node['state']}, {status['repaired']} chunks repaired")
    if sorted(disks) != ["failed", "healthy"] or node["state"] != "alive":
        raise SystemExit(f"the other disk of the slave does not go on: {node}")


def failed_disks(status):
    return sum(disk["health"] == "failed" for node in status["nodes"] for disk in node["disks"])


def healthy(status):
    chunks = status["chunks"]
    return chunks["healthy"] == chunks["total"] > 0


main(*sys.argv[1:])
