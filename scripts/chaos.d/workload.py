"""One worker on one mount: writes stamped blocks, replaces, creates and removes files, reads what all have written.

    workload.py MOUNTPOINT WORKER SEED LOG [work|probe]   (ends once the folder of LOG has a file `stop`)
    workload.py MOUNTPOINT WORKER SEED LOG all            (reads everything once and ends)

Each step is a line in LOG: kind, ..., begin, end, errno (0: it succeeded). What may follow from them is the oracle's matter.

    write FILE BLOCK SEQUENCE              sync HOW FILE [[BLOCK, SEQUENCE], ...]: covers these writes of one handle
    read FILE [[BLOCK, SEQUENCE, WRONG], ...]
    replace KEY GENERATION BLOCKS          whole KEY GENERATION WRONG: a file read as a whole
    create NAME   unlink NAME   syncdir    list [NAME, ...]
    probe                                  a write and an fsync in each of some chunks, for the time it takes
"""
import errno, json, os, random, sys, time

import blocks
from common import now

WORKERS = 6
SHARED_FILES, SHARED_BLOCKS = 3, 2048
OWN_FILES, MOST_BLOCKS = 4, 24
PROBE_CHUNKS, CHUNK = 4, 1 << 20
AFTER_ERROR_S, BETWEEN_S, PROBE_EVERY_S = 0.2, 0.01, 0.25


class Worker:
    def __init__(self, mount, number, seed, log):
        self.root, self.number = f"{mount}/work", number
        self.random = random.Random(f"{seed}/worker/{number}")
        self.log = open(log, "a", buffering=1)
        self.sequence, self.generation, self.names = 0, 0, 0
        self.handles = {}  # file: (descriptor, writes not yet synced)
        self.unsettled = set()  # keys whose last replacement failed: nothing is asked of them before an fsync of the folder
        self.living = []
        # A signal would interrupt a call, and what is then made a second time may have been done already.
        self.stop = f"{os.path.dirname(log)}/stop"

    def note(self, kind, begin, error, *what):
        self.log.write(json.dumps([kind, *what, round(begin, 4), round(now(), 4), error]) + "\n")

    def attempt(self, kind, what, work):
        """(succeeded, result), with a line in the log."""
        begin = now()
        try:
            result = work()
        except OSError as failed:
            self.note(kind, begin, failed.errno, *what)
            time.sleep(AFTER_ERROR_S)
            return False, None
        self.note(kind, begin, 0, *what)
        return True, result

    def run(self):
        steps = [(40, self.update), (22, self.read_shared), (14, self.replace), (12, self.read_whole), (8, self.name), (4, self.list)]
        weights = [weight for weight, _ in steps]
        while not os.path.exists(self.stop):
            self.random.choices(steps, weights)[0][1]()
            time.sleep(BETWEEN_S)
        for file in list(self.handles):
            self.sync(file, "close")

    # Blocks of shared files, each with one writer

    def update(self):
        file = f"shared-{self.random.randrange(SHARED_FILES)}"
        if file not in self.handles:
            opened, fd = self.attempt("open", (file,), lambda: os.open(f"{self.root}/{file}", os.O_RDWR))
            if not opened:
                return
            self.handles[file] = (fd, [])
        fd, unsynced = self.handles[file]
        for _ in range(self.random.randint(1, 8)):
            block = self.random.randrange(SHARED_BLOCKS // WORKERS) * WORKERS + self.number
            self.sequence += 1
            data = blocks.stamp(file, block, self.number, self.sequence)
            written, count = self.attempt("write", (file, block, self.sequence), lambda: os.pwrite(fd, data, block * blocks.SIZE))
            if not written or count != blocks.SIZE:
                self.give_up(file)
                return
            unsynced.append([block, self.sequence])
        how = self.random.choices(["fsync", "fdatasync", "close", None], [4, 2, 3, 3])[0]
        if how:
            self.sync(file, how)

    def sync(self, file, how):
        fd, unsynced = self.handles[file]
        call = {"fsync": os.fsync, "fdatasync": os.fdatasync, "close": os.close}[how]
        done, _ = self.attempt("sync", (how, file, list(unsynced)), lambda: call(fd))
        if how == "close":
            del self.handles[file]
        elif done:
            unsynced.clear()
        else:
            self.give_up(file)

    def give_up(self, file):
        """After an error nothing that was not synced is relied upon."""
        fd, _ = self.handles.pop(file)
        self.attempt("abandon", (file,), lambda: os.close(fd))

    def read_shared(self):
        file = f"shared-{self.random.randrange(SHARED_FILES)}"
        count = self.random.choice([1, 2, 8, 32])
        self.read(file, self.random.randrange(SHARED_BLOCKS - count + 1), count)

    def read(self, file, first, count):
        begin = now()
        try:
            fd = os.open(f"{self.root}/{file}", os.O_RDONLY)
            try:
                data = os.pread(fd, count * blocks.SIZE, first * blocks.SIZE)
            finally:
                os.close(fd)
        except OSError as failed:
            self.note("read", begin, failed.errno, file, [[first, None, None]])
            time.sleep(AFTER_ERROR_S)
            return
        seen = []
        for at in range(count):
            block = data[at * blocks.SIZE : (at + 1) * blocks.SIZE]
            sequence, _, wrong = blocks.read_stamp(block, file, first + at)
            if wrong:
                self.keep(file, first + at, block)
            seen.append([first + at, sequence, wrong])
        self.note("read", begin, 0, file, seen)

    def keep(self, file, at, block):
        """For whoever looks into it."""
        with open(f"{self.log.name}.{file.replace('/', '_')}.{at}.{now():.3f}.bad", "wb") as kept:
            kept.write(block)

    # Files replaced as a whole

    def replace(self):
        key = f"own-{self.number}-{self.random.randrange(OWN_FILES)}"
        if key in self.unsettled:
            if self.sync_folder():
                self.unsettled.clear()
            return
        self.generation += 1
        count, new = self.random.randint(1, MOST_BLOCKS), f"{self.root}/new-{self.number}-{self.generation}"
        early = self.random.random() < 0.5  # renamed while it is open and not synced

        def write():
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                for at in range(count):
                    data = blocks.stamp(key, at, self.number, self.generation, count)
                    if os.pwrite(fd, data, at * blocks.SIZE) != blocks.SIZE:
                        raise OSError(errno.EIO, "a short write")
                if early:
                    return fd
                if self.random.random() < 0.5:
                    os.fsync(fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

        written, fd = self.attempt("prepare", (key, self.generation), write)
        if written:
            moved, _ = self.attempt("replace", (key, self.generation, count), lambda: os.rename(new, f"{self.root}/{key}"))
            if not moved:
                self.unsettled.add(key)
        if fd is not None:
            self.attempt("abandon", (key,), lambda: os.close(fd))

    def read_whole(self):
        self.whole(f"own-{self.random.randrange(WORKERS)}-{self.random.randrange(OWN_FILES)}")

    def whole(self, key):
        begin = now()
        try:
            fd = os.open(f"{self.root}/{key}", os.O_RDONLY)
            try:
                data = os.pread(fd, (MOST_BLOCKS + 1) * blocks.SIZE, 0)
            finally:
                os.close(fd)
        except FileNotFoundError:
            self.note("whole", begin, 0, key, 0, None)
            return
        except OSError as failed:
            self.note("whole", begin, failed.errno, key, None, None)
            time.sleep(AFTER_ERROR_S)
            return
        stamps = [blocks.read_stamp(data[at : at + blocks.SIZE], key, at // blocks.SIZE) for at in range(0, len(data), blocks.SIZE)]
        wrong = [wrong for _, _, wrong in stamps if wrong]
        found = {(sequence, count) for sequence, count, _ in stamps}
        if not wrong and (len(found) != 1 or found != {(stamps[0][0], len(stamps))}):
            wrong = [f"{len(stamps)} blocks, (generation, blocks) {sorted(found)}"]
        if wrong:
            self.keep(key, 0, data)
        self.note("whole", begin, 0, key, stamps[0][0] if stamps else None, "; ".join(wrong[:3]) or None)

    # Names

    def name(self):
        if self.living and self.random.random() < 0.5:
            name = self.living.pop(self.random.randrange(len(self.living)))
            self.attempt("unlink", (name,), lambda: os.unlink(f"{self.root}/names/{name}"))
            if self.random.random() < 0.5:
                self.sync_folder("names")
            return
        self.names += 1
        name = f"{self.number}-{self.names}"

        def create():
            os.close(os.open(f"{self.root}/names/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

        if self.attempt("create", (name,), create)[0]:
            self.living.append(name)

    def sync_folder(self, folder="."):
        def sync():
            fd = os.open(f"{self.root}/{folder}", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        return self.attempt("syncdir", (folder,), sync)[0]

    def list(self):
        begin, found, error = now(), [], 0
        try:
            found = os.listdir(f"{self.root}/names")
        except OSError as failed:
            error = failed.errno
        self.note("list", begin, error, found)
        if error:
            time.sleep(AFTER_ERROR_S)

    # The end, and the beginning

    def read_all(self):
        for file in range(SHARED_FILES):
            for first in range(0, SHARED_BLOCKS, 32):
                self.read(f"shared-{file}", first, 32)
        for worker in range(WORKERS):
            for file in range(OWN_FILES):
                self.whole(f"own-{worker}-{file}")
        self.list()

    def probe(self):
        path, fd, count = f"{self.root}/probe-{self.number}", None, 0

        def once():
            nonlocal fd
            if fd is None:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            for chunk in range(PROBE_CHUNKS):
                os.pwrite(fd, blocks.stamp("probe", chunk, self.number, count), chunk * CHUNK)
            os.fsync(fd)

        while not os.path.exists(self.stop):
            count += 1
            if not self.attempt("probe", (), once)[0] and fd is not None:
                closed, fd = fd, None
                self.attempt("abandon", ("probe",), lambda: os.close(closed))
            time.sleep(PROBE_EVERY_S)


def prepare(mount):
    """What all workers share, stable before they begin."""
    root = f"{mount}/work"
    os.makedirs(f"{root}/names")
    for file in range(SHARED_FILES):
        fd = os.open(f"{root}/shared-{file}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.ftruncate(fd, SHARED_BLOCKS * blocks.SIZE)
        os.fsync(fd)
        os.close(fd)


if __name__ == "__main__":
    worker = Worker(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
    {"work": worker.run, "probe": worker.probe, "all": worker.read_all}[sys.argv[5] if len(sys.argv) > 5 else "work"]()
