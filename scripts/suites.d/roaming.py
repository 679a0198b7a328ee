#!/usr/bin/env python3
"""The machine of a mount changes its network address in the middle of a copy: at once, after 2 s and after 10 s without any.

    roaming.py GODRIVE_BIN_DIR WORK_FOLDER      (inside a network namespace of its own; scripts/suites roaming)

The cluster listens on one end of a veth pair, the mount lives in a second namespace at the other end. A copy to the mount and
a cold read from it go through all three changes. A stall is counted from the moment of the new route until a mebibyte has
arrived at the receiving end, and until the copying program has got on; the longer of both counts.
"""
import hashlib, os, random, signal, subprocess, sys, threading, time

MIB = 1 << 20
FILE_MIB = 512
RATE = "400mbit"
GAPS_S = [0, 2, 10]
STALL_AT_MOST_S = 3.0
MASTER = "10.77.0.1"
# Two networks that both lead to the cluster: its own, and one behind a router.
NETWORKS = [
    ["addr add 10.77.0.2/24 dev gd1"],
    ["addr add 10.78.0.2/24 dev gd1", f"route add {MASTER}/32 via 10.78.0.1 dev gd1"],
]


def piece(number):
    return random.Random(number).randbytes(MIB)


def copy(direction, path):
    """The copying program: a line for each mebibyte, the checksum at the end."""
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT if direction == "write" else os.O_RDONLY
    fd = os.open(path, flags, 0o644)
    for number in range(FILE_MIB):
        if direction == "write":
            data = piece(number)
            at = 0
            while at < MIB:
                at += os.write(fd, memoryview(data)[at:])
        else:
            data = b""
            while len(data) < MIB:
                more = os.read(fd, MIB - len(data))
                if not more:
                    sys.exit(f"the file ends at {number * MIB + len(data)} bytes")
                data += more
        digest.update(data)
        print("at", number + 1, flush=True)
    os.close(fd)
    print("sum", digest.hexdigest(), flush=True)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def wait_until(what, condition, deadline_s):
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {deadline_s} s")
        time.sleep(0.005)


def received(net_dev, interface):
    line = next(line for line in open(net_dev) if line.strip().startswith(interface + ":"))
    return int(line.split(":")[1].split()[0])


class Client:
    """A namespace that ends with this program: a process in it waits for the end of its input."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE)
        own = os.readlink("/proc/self/ns/net")
        wait_until("a namespace for the client", lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != own, 5)
        self.enter = ["nsenter", "-t", str(self.holder.pid), "-n", "--"]
        self.network = 0

    def ip(self, lines):
        done = subprocess.run([*self.enter, "ip", "-batch", "-"], input="\n".join(lines) + "\n", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"ip {lines}: {done.stderr.strip()}")

    def connect(self):
        run("ip", "link", "add", "gd0", "type", "veth", "peer", "name", "gd1", "netns", str(self.holder.pid))
        run("ip", "addr", "add", f"{MASTER}/24", "dev", "gd0")
        run("ip", "addr", "add", "10.78.0.1/24", "dev", "gd0")
        run("ip", "link", "set", "gd0", "up")
        self.ip(["link set lo up", "link set gd1 up", *NETWORKS[0]])
        shape = ["root", "tbf", "rate", RATE, "burst", "256kb", "latency", "50ms"]
        run("tc", "qdisc", "add", "dev", "gd0", *shape)
        run(*self.enter, "tc", "qdisc", "add", "dev", "gd1", *shape)

    def storm(self):
        """Interfaces with addresses come and go, as when containers start: no connection has to do with them."""
        for number in range(20):
            name, network = f"gs{number}", f"10.79.{number}"
            self.ip([f"link add {name} type veth peer name {name}p", f"addr add {network}.1/24 dev {name}", f"link set {name} up"])
        self.ip([f"link del gs{number}" for number in range(20)])

    def move(self, gap_s):
        """Returns the moment of the new route."""
        self.network = 1 - self.network
        gone, new = ["addr flush dev gd1"], NETWORKS[self.network]
        if gap_s == 0:
            moment = time.monotonic()
            self.ip(gone + new)
        else:
            self.ip(gone)
            time.sleep(gap_s)
            moment = time.monotonic()
            self.ip(new)
        return moment

    def end(self):
        self.holder.stdin.close()
        self.holder.wait()


class Mount:
    def __init__(self, client, binaries, work):
        self.client, self.binaries, self.work = client, binaries, work
        self.point, self.log_path = f"{work}/mnt", f"{work}/mount.log"
        os.makedirs(self.point, exist_ok=True)

    def start(self, *arguments):
        command = [*self.client.enter, f"{self.binaries}/godrive-fuse", *arguments, "--mountpoint", self.point]
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(command, stderr=log)
        try:
            wait_until("the mount", lambda: os.path.ismount(self.point) or self.process.poll() is not None, 30)
            if self.process.poll() is not None:
                raise SystemExit("the mount ended at its start")
        except SystemExit as why:
            self.stop(forget=True)
            raise SystemExit(f"{why}\n{self.log()}")

    def stop(self, forget=False):
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if os.path.ismount(self.point):
            run("umount", "-l", self.point)
        if status and not forget:
            raise SystemExit(f"the mount ended with status {status}:\n{self.log()}")

    def log(self):
        return open(self.log_path).read()


class Copier:
    def __init__(self, direction, path):
        self.steps, self.sum = [], None
        self.process = subprocess.Popen([sys.executable, __file__, direction, path], stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            word, value = line.split()
            if word == "at":
                self.steps.append(time.monotonic())
            else:
                self.sum = value

    def finish(self):
        status = self.process.wait(120)
        self.reader.join()
        if status:
            raise SystemExit(f"the copying program ended with status {status}")
        return self.sum

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join()


def copy_while_moving(client, direction, path):
    """The checksum of what was copied, and the stall for each gap."""
    ends = {"write": ("/proc/net/dev", "gd0"), "read": (f"/proc/{client.holder.pid}/net/dev", "gd1")}
    copier, stalls = Copier(direction, path), []
    try:
        for at, gap_s in enumerate(GAPS_S):
            due = FILE_MIB * (at + 1) // 4
            wait_until("the copy", lambda: len(copier.steps) >= due or copier.process.poll() is not None, 60)
            if len(copier.steps) == FILE_MIB:
                raise SystemExit("the copy was over before the address changed")
            moment = client.move(gap_s)
            before, steps = received(*ends[direction]), len(copier.steps)
            what = f"{direction}, {gap_s} s without an address: no progress after the new route"
            wait_until(what, lambda: received(*ends[direction]) >= before + MIB, 30)
            wait_until(what, lambda: len(copier.steps) > steps or copier.process.poll() is not None, 30)
            stalls.append(time.monotonic() - moment)
        return copier.finish(), stalls
    finally:
        copier.stop()


def judge(stalls, log):
    for direction, of in stalls.items():
        shown = ", ".join(f"{stall:.2f} s after {gap_s} s without" for gap_s, stall in zip(GAPS_S, of))
        print(f"{direction}: stalls {shown}")
    bad = [line for line in log.splitlines() if " ERROR " in line or "lost" in line and "was lost; it will ask again" not in line]
    if bad:
        raise SystemExit("the mount's log tells of losses:\n" + "\n".join(bad[:20]))
    followed = log.count("connections go on")
    if followed != 2 * len(GAPS_S):
        raise SystemExit(f"the mount's log tells of {followed} changes of address, there were {2 * len(GAPS_S)}")
    worst = max(stall for of in stalls.values() for stall in of)
    if worst > STALL_AT_MOST_S:
        raise SystemExit(f"a stall of {worst:.2f} s; at most {STALL_AT_MOST_S} s are allowed")


def main(binaries, work):
    os.makedirs(work, exist_ok=True)
    home, godrive = f"{work}/cluster", f"{binaries}/godrive"
    client = Client()
    try:
        client.connect()
        run(godrive, "up", "--dir", home, "--slaves", "3", "--replicas", "2", "--address", MASTER)
        token = run(godrive, "token", "--dir", home, "--role", "client").strip()
        mount, stalls = Mount(client, binaries, work), {}
        mount.start("--join", token, "--dir", f"{work}/client")
        try:
            client.storm()
            written, stalls["write"] = copy_while_moving(client, "write", f"{mount.point}/file")
            mount.stop()
            mount.start("--config", f"{work}/client/config.toml")
            read, stalls["read"] = copy_while_moving(client, "read", f"{mount.point}/file")
        except BaseException:
            mount.stop(forget=True)
            print(mount.log())
            raise
        mount.stop()
        if written != read:
            raise SystemExit(f"written was {written}, read {read}")
        judge(stalls, mount.log())
    finally:
        try:
            if os.path.exists(home):
                run(godrive, "down", "--dir", home)
        finally:
            client.end()


def stopped(number, _):
    raise SystemExit(f"stopped by signal {number}")


# Whoever stops the suite wants it cleaned up as well.
signal.signal(signal.SIGTERM, stopped)
if sys.argv[1] in ("write", "read"):
    copy(sys.argv[1], sys.argv[2])
else:
    main(sys.argv[1], sys.argv[2])
