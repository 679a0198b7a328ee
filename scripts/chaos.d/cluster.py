"""The cluster of a run: made by `godrive up`, then each node moved to an address, a namespace and (slaves) a small disk of its own."""
import glob, json, os, re, shutil, signal, subprocess, time

from common import becomes, now, run, wait_until

SLAVES = [f"slave-{number + 1}" for number in range(int(os.environ.get("CHAOS_SLAVES", "4")))]
MASTER, CLONE, MOUNTS = "master-1", f"slave-{len(SLAVES) + 1}", ["mount-1", "mount-2"]
NUMBERS = {MASTER: 1, **{name: 11 + at for at, name in enumerate([*SLAVES, CLONE])}, **{name: 21 + at for at, name in enumerate(MOUNTS)}}
PROGRAMS = {"master": "godrive-master", "slave": "godrive-slave", "mount": "godrive-fuse"}
PORT = 7400
DISK_MIB = 512
DEADLINE_S = 15
SCRUB_BYTES_PER_S = 64 << 20


class Cluster:
    def __init__(self, work, binaries, network):
        self.work, self.binaries, self.network = work, binaries, network
        self.home, self.godrive = f"{work}/cluster", f"{binaries}/godrive"
        self.processes = {}  # the first process of each node
        self.unexpected = []  # ends that nobody asked for
        self.given_up, self.away = [], {}  # mounts that found no master, (name, since, until); those not yet back
        os.environ["GODRIVE_BIN_DIR"] = binaries
        self.make()

    def make(self):
        lay = [*self.network.enter(MASTER), self.godrive]
        run(*lay, "up", "--dir", self.home, "--slaves", str(len(SLAVES)), "--replicas", "3", "--min-replicas", "2", "--chunk-size", "1MiB")
        for name in MOUNTS:
            os.makedirs(self.mountpoint(name))
            run(*lay, "mount", "--dir", self.home, self.mountpoint(name))
        run(*lay, "down", "--dir", self.home)
        old = re.search(r'masters = \["(.*)"\]', self.text("cluster.toml"))[1]
        master = f"{self.network.address(MASTER)}:{PORT}"
        for file in ["cluster.toml", *(f"{name}/config.toml" for name in (MASTER, *SLAVES, *MOUNTS))]:
            self.write(file, self.text(file).replace(old, master))
        for name in SLAVES:
            self.make_disk(name)
            file = f"{name}/config.toml"
            text = re.sub(r"listen = .*", f'listen = "{self.network.address(name)}:{PORT}"', self.text(file))
            text = re.sub(r"disks = .*", f'disks = ["{self.disk(name)}"]\nscrub_bytes_per_s = {SCRUB_BYTES_PER_S}', text)
            self.write(file, text)
        for name in MOUNTS:
            # A small cache, so that most reads are answered by the replicas.
            more = f"deadline_s = {DEADLINE_S}\ncache_bytes = {2 << 20}\n"
            self.write(f"{name}/config.toml", more + self.text(f"{name}/config.toml"))

    def make_disk(self, name):
        image, where = f"{self.work}/{name}.img", f"{self.work}/disks/{name}"
        os.makedirs(where)
        with open(image, "wb") as file:
            file.truncate(DISK_MIB << 20)
        run("mkfs.ext4", "-q", "-m", "0", image)
        # The loop device goes with the mount.
        run("mount", "-o", "loop", image, where)
        os.mkdir(self.disk(name))

    def text(self, file):
        with open(f"{self.home}/{file}") as opened:
            return opened.read()

    def write(self, file, text):
        with open(f"{self.home}/{file}", "w") as opened:
            opened.write(text)

    def disk(self, name):
        return f"{self.work}/disks/{name}/data"

    def mountpoint(self, name):
        return f"{self.work}/mnt/{name}"

    def config(self, name):
        return f"{self.home}/{name}/config.toml"

    # Processes

    def spawn(self, name, *command):
        with open(f"{self.home}/{name}/log", "a") as log:
            line = [*self.network.enter(name), *command]
            environment = {**os.environ, "NO_COLOR": "1"}
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", env=environment)
        self.processes[name] = process
        return process

    def start(self, name):
        is_mount = name in MOUNTS
        self.write(f"{name}/pid", "")
        process = self.spawn(name, f"{self.binaries}/{PROGRAMS[name.split('-')[0]]}", "--config", self.config(name))
        if not is_mount:
            self.write(f"{name}/pid", f"{process.pid}\n")

    def start_mount(self, name):
        self.start(name)
        ended = lambda: self.processes[name].poll() is not None
        wait_until(f"{name} at its start", lambda: self.is_mounted(name) or ended(), 60)
        if ended():
            raise SystemExit(f"{name} ended at its start; see its log in {self.home}/{name}/log")

    def is_mounted(self, name):
        """Without a call to the mount, which may not answer."""
        with open("/proc/self/mounts") as mounts:
            return any(line.split()[1] == self.mountpoint(name) for line in mounts)

    def daemon_of(self, mount):
        """The process that serves a mount; the first one is its keeper. None while one follows another."""
        try:
            pid = int(self.text(f"{mount}/pid"))
            with open(f"/proc/{pid}/stat") as stat:
                return None if stat.read().rsplit(") ", 1)[1][0] in "ZX" else pid
        except (ValueError, FileNotFoundError, ProcessLookupError):
            return None

    def pid(self, name):
        return self.daemon_of(name) if name in MOUNTS else self.processes[name].pid

    def signal(self, name, number):
        """To the daemon of the node; false if there is none."""
        pid = self.pid(name)
        try:
            if pid is not None:
                os.kill(pid, number)
            return pid is not None
        except ProcessLookupError:
            return False

    def kill(self, names):
        """kill -9 of all at once; the daemon of a mount is followed by another one by itself."""
        for name in names:
            if name in MOUNTS:
                wait_until(f"a daemon of {name}", lambda: self.signal(name, signal.SIGKILL), 30)
            elif name in self.processes:
                self.processes[name].kill()
        for name in names:
            if name not in MOUNTS and name in self.processes:
                self.processes.pop(name).wait()

    def lose_mount(self, name):
        """The machine of a mount dies: both of its processes at one moment."""
        keeper = self.processes.pop(name)
        os.kill(keeper.pid, signal.SIGSTOP)
        self.signal(name, signal.SIGKILL)
        keeper.kill()
        keeper.wait()

    def unmount(self, name):
        subprocess.run(["umount", "-l", self.mountpoint(name)], capture_output=True)

    def stop(self, name, deadline_s=90):
        """SIGTERM; how it ended (0 is clean), or None at the deadline."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def look_for_ends(self):
        """Daemons that ended by themselves are started again. It is a finding, but for a mount whose new daemon finds no master."""
        for name, process in list(self.processes.items()):
            if process.poll() is None or name == CLONE:
                continue
            del self.processes[name]
            words = self.last_words(name)
            if name in MOUNTS:
                self.away.setdefault(name, now() - 2)
                self.unmount(name)
            if name not in MOUNTS or not re.search("Unreachable|Timeout|no answer", words):
                self.unexpected.append(f"{name} ended by itself (status {process.returncode}): {words}")
            self.start(name)
        for name in [name for name in self.away if self.is_mounted(name)]:
            self.given_up.append((name, self.away.pop(name), now() + 1))

    def last_words(self, name):
        with open(f"{self.home}/{name}/log", errors="replace") as log:
            return " | ".join(log.read().splitlines()[-3:])

    # What it says of itself

    def status(self):
        """None if the master does not answer."""
        line = [*self.network.enter(MASTER), self.godrive, "status", "--dir", self.home, "--json"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=30)
            return json.loads(done.stdout) if done.returncode == 0 else None
        except (subprocess.TimeoutExpired, json.JSONDecodeError):
            return None

    def slave_status(self, name):
        status = self.status()
        nodes = [node for node in status["nodes"] if node["name"] == name] if status else []
        return nodes[0] if nodes else None

    def why_unhealthy(self):
        """Empty if everything is as it should be."""
        status = self.status()
        if status is None:
            return "the master does not answer"
        chunks, reasons = status["chunks"], []
        if chunks["healthy"] != chunks["total"]:
            reasons.append(f"chunks {chunks}")
        if status["repair_active"] + status["repair_queued"]:
            reasons.append(f"repairs {status['repair_active']} active, {status['repair_queued']} queued")
        for node in status["nodes"]:
            if node["name"] in SLAVES and (node["state"] != "alive" or any(disk["health"] != "healthy" for disk in node["disks"])):
                reasons.append(f"{node['name']} {node['state']} {[disk['health'] for disk in node['disks']]}")
        return "; ".join(reasons)

    def wait_healthy(self, deadline_s):
        """True once nothing was wrong for three looks in a row."""
        good = [0]

        def looked():
            self.look_for_ends()
            good[0] = 0 if self.why_unhealthy() else good[0] + 1
            return good[0] >= 3

        return becomes(looked, deadline_s, 0.5)

    def fsck(self, name):
        """(is it clean, what it printed) of a stopped slave."""
        done = subprocess.run([f"{self.binaries}/godrive-slave", "fsck", "--config", self.config(name)], capture_output=True, text=True)
        return done.returncode == 0, (done.stdout + done.stderr).strip()

    # Disks

    def wipe(self, name):
        shutil.rmtree(self.disk(name))
        os.mkdir(self.disk(name))

    def fill(self, name):
        """Leaves less than a mebibyte."""
        where = f"{self.work}/disks/{name}"
        free = os.statvfs(where)
        room = free.f_bavail * free.f_frsize
        subprocess.run(["fallocate", "-l", str(max(room - (1 << 19), 4096)), f"{where}/filler"], check=False, capture_output=True)

    def free(self, name):
        filler = f"{self.work}/disks/{name}/filler"
        if os.path.exists(filler):
            os.remove(filler)

    def segments(self, name):
        return sorted(glob.glob(f"{self.disk(name)}/segments/*.seg"))
