"""Whether what the workers were answered keeps the promises of docs/SEMANTICS.md. Reads the logs when everything is over.

A block has one writer, whose writes follow each other. A write that a later fsync or close of its handle acknowledged, with no error
in between, was seen by everybody from the moment it returned: a read that began afterwards gives it or a later one. So it is with what
a worker on another mount has read, since that was held before it was shown. A write that failed or was never acknowledged may be
seen, or not, until a later acknowledged one. Nothing else is relied upon, so that no fault makes the oracle wrong.
"""
import bisect, errno, json, os
from collections import Counter, defaultdict

from workload import WORKERS

# A reader at the end is not one of the workers, and nothing may fail for it.
FIRST_READER = 100
ALLOWED = {errno.EIO}
READS = ("read", "whole", "list")
# Reads that go on, though disks are full, take no longer than this.
READ_MOST_S = 10


class Windows:
    """When faults of which a program sees something else than EIO were under way: (mount or None for all, begin, end)."""

    def __init__(self):
        self.lost_mounts, self.full_disks, self.no_room = [], [], []

    def covers(self, windows, mount, begin, end):
        return any(of in (None, mount) and begin <= until and end >= since for of, since, until in windows)


class Bound:
    """The highest number acknowledged by a moment."""

    def __init__(self, acknowledged):
        self.ends, self.best, best = [], [], 0
        for end, number in sorted(acknowledged):
            best = max(best, number)
            self.ends.append(end)
            self.best.append(best)

    def before(self, moment):
        at = bisect.bisect_left(self.ends, moment)
        return self.best[at - 1] if at else 0


class Oracle:
    def __init__(self, logs, windows, longest_s):
        self.windows, self.longest_s = windows, longest_s
        self.violations, self.acknowledged, self.failed, self.slowest = [], Counter(), Counter(), (0, "")
        self.steps = defaultdict(list)  # kind: [(worker, what, begin, end, error)]
        for worker, path in logs:
            self.load(worker, path)

    def load(self, worker, path):
        with open(path) as log:
            for line in log:
                kind, *what, begin, end, error = json.loads(line)
                self.steps[kind].append((worker, what, begin, end, error))
                self.outcome(worker, kind, what, begin, end, error)

    def violation(self, text):
        self.violations.append(text)

    def judge(self):
        self.judge_blocks()
        self.judge_replacements()
        self.judge_names()
        return self.violations

    # Outcomes

    def outcome(self, worker, kind, what, begin, end, error):
        where = f"worker {worker}, {kind} {str(what)[:120]} at {begin:.2f} to {end:.2f}"
        if end - begin > self.slowest[0]:
            self.slowest = (end - begin, where)
        if end - begin > self.longest_s:
            self.violation(f"hangs: {end - begin:.1f} s: {where}")
        if kind in READS and end - begin > READ_MOST_S and self.windows.covers(self.windows.no_room, worker % 2, begin, begin):
            self.violation(f"{end - begin:.1f} s while disks were full: {where}")
        if error == 0:
            self.acknowledged[kind] += len(what[2]) if kind == "sync" else 1
            return
        self.failed[errno.errorcode.get(error, error)] += 1
        if worker >= FIRST_READER or not self.allowed(worker, kind, begin, end, error):
            self.violation(f"errno {errno.errorcode.get(error, error)}: {where}")

    def allowed(self, worker, kind, begin, end, error):
        covers, mount = self.windows.covers, worker % 2
        if error in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENODEV):
            # A handle of a mount that is gone stays so.
            more = 60 if kind in ("write", "sync", "abandon", "prepare") and error != errno.ENOENT else 0
            return covers(self.windows.lost_mounts, mount, begin - more, end)
        if error == errno.ENOSPC:
            return covers(self.windows.full_disks, mount, begin, end)
        if error == errno.EIO and kind in READS and covers(self.windows.no_room, mount, begin, begin):
            return False  # reads go on while disks are full, and nothing else was wrong then
        if error == errno.ESTALE:
            return kind in ("whole", "abandon")  # the file was replaced, and the session that had it open has ended
        return error in ALLOWED

    # Blocks of shared files

    def judge_blocks(self):
        writes, acknowledged = defaultdict(list), defaultdict(list)
        returned = {}
        for _, (file, block, sequence), begin, end, _ in self.steps["write"]:
            writes[file, block].append((begin, sequence))
            returned[file, sequence, block] = end
        for _, (_, file, covered), _, _, error in self.steps["sync"]:
            if error == 0:
                for block, sequence in covered:
                    acknowledged[file, block].append((returned[file, sequence, block], sequence))
        reads = defaultdict(list)
        for worker, (file, seen), begin, end, error in self.steps["read"]:
            for block, sequence, wrong in seen if error == 0 else []:
                if wrong:
                    self.violation(f"{file} block {block}, read by {worker} at {begin:.2f} to {end:.2f}: {wrong}")
                else:
                    reads[file, block].append((begin, end, sequence, worker))
                    if sequence and worker % 2 != block % WORKERS % 2:
                        acknowledged[file, block].append((end, sequence))
        for (file, block), of in reads.items():
            begun = {sequence: begin for begin, sequence in writes[file, block]}
            bound = Bound(acknowledged[file, block])
            for begin, end, sequence, worker in of:
                where = f"{file} block {block} (writer {block % WORKERS}), read by {worker} at {begin:.2f} to {end:.2f}"
                if sequence and begun.get(sequence, end) >= end:
                    self.violation(f"{where}: sequence {sequence} was not written by then")
                if sequence < bound.before(begin):
                    self.violation(f"{where}: sequence {sequence}, but {bound.before(begin)} was acknowledged before")

    # Files replaced as a whole

    def judge_replacements(self):
        begun, acknowledged = defaultdict(dict), defaultdict(list)
        for _, (key, generation, _), begin, end, error in self.steps["replace"]:
            begun[key][generation] = begin
            if error == 0:
                acknowledged[key].append((end, generation))
        for worker, (key, generation, wrong), _, end, error in self.steps["whole"]:
            # What another mount shows is at the master.
            if error == 0 and generation and not wrong and worker % 2 != int(key.split("-")[1]) % 2:
                acknowledged[key].append((end, generation))
        bounds = {key: Bound(of) for key, of in acknowledged.items()}
        for worker, (key, generation, wrong), begin, end, error in self.steps["whole"]:
            where = f"{key}, read by {worker} at {begin:.2f} to {end:.2f}"
            if error:
                continue
            if generation == 0 and wrong is None:  # no such name
                if self.windows.covers(self.windows.lost_mounts, worker % 2, begin, end):
                    continue
            elif wrong or generation is None:
                self.violation(f"{where}: {wrong or 'empty'}")
                continue
            elif begun[key].get(generation, end) >= end:
                self.violation(f"{where}: generation {generation} was not there by then")
            least = bounds[key].before(begin) if key in bounds else 0
            if generation < least:
                self.violation(f"{where}: generation {generation}, but {least} was acknowledged before")

    # Names

    def judge_names(self):
        created, removal, settled = {}, {}, defaultdict(list)
        tried = {what[0] for _, what, _, _, _ in self.steps["create"]}
        for _, (name,), _, end, error in self.steps["create"]:
            if error == 0:
                created[name] = end
        for worker, (name,), begin, end, error in self.steps["unlink"]:
            removal[name] = (begin, end, error)
        for worker, (folder,), begin, end, error in self.steps["syncdir"]:
            if error == 0 and folder == "names":
                settled[worker].append((begin, end))
        gone = {}
        for name, (_, end, error) in removal.items():
            later = [done for begin, done in settled[int(name.split("-")[0])] if begin >= end]
            if error == 0 and later:
                gone[name] = min(later)
        for worker, (found,), begin, end, error in self.steps["list"]:
            if error:
                continue
            where = f"names, listed by {worker} at {begin:.2f} to {end:.2f}"
            there = set(found)
            if len(there) != len(found):
                self.violation(f"{where}: twice in one listing: {[name for name, count in Counter(found).items() if count > 1][:5]}")
            missing = [n for n, since in created.items() if since < begin and n not in there and not (n in removal and removal[n][0] <= end)]
            if missing:
                self.violation(f"{where}: created and missing: {missing[:5]}")
            undead = [name for name in there if gone.get(name, end) < begin]
            if undead:
                self.violation(f"{where}: removed and there: {undead[:5]}")
            if unknown := there - tried:
                self.violation(f"{where}: never created: {sorted(unknown)[:5]}")


def probes(path):
    """[(begin, end, errno)] of a mount's probe, so far."""
    if not os.path.exists(path):
        return []
    with open(path) as log:
        lines = log.read().split("\n")[:-1]
    return [tuple(step[-3:]) for step in map(json.loads, lines) if step[0] == "probe"]
