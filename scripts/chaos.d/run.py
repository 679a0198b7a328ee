"""The first process of a run, inside its namespaces: makes the cluster, lets the faults go, judges at the end.

    run.py WORK_FOLDER GODRIVE_BIN_DIR SEED MINUTES [KINDS]     (scripts/chaos starts it)
"""
import os, random, re, signal, subprocess, sys, time
from collections import Counter

import faults
import oracle
import workload
from cluster import DEADLINE_S, MASTER, MOUNTS, NUMBERS, SLAVES, Cluster
from common import HERE, becomes, now
from network import Network

WHOLE_DECK_MINUTES = 10
RESUME_DEADLINE_S, HEALTHY_DEADLINE_S, REPAIR_DEADLINE_S = 90, 180, 240
STEPS_PER_MINUTE = 500
STOPPED = 130


class Run:
    def __init__(self, work, binaries, seed, minutes, only):
        self.work, self.seed, self.minutes, self.only = work, seed, minutes, only
        self.logs = f"{work}/history"
        os.makedirs(self.logs)
        self.log = open(f"{work}/schedule.log", "a", buffering=1)
        self.begun = now()
        self.violations, self.injected, self.figures = [], Counter(), []
        self.windows, self.stopped_s = oracle.Windows(), 0
        self.workers = []
        self.network = Network(seed, NUMBERS)
        self.cluster = Cluster(work, binaries, self.network)

    def say(self, text):
        line = f"{now() - self.begun:7.1f} s  {text}"
        print(line, flush=True)
        self.log.write(f"{now():.2f} {line}\n")

    def violation(self, text):
        self.violations.append(text)
        self.say(f"VIOLATION {text}")

    def hold(self, seconds):
        """Time in which a fault lasts; daemons that end meanwhile are seen."""
        end = now() + seconds
        while now() < end:
            time.sleep(min(0.2, max(0, end - now())))
            self.cluster.look_for_ends()

    # What has to be true again, and how soon

    def resumed(self, what, since, limit_s):
        """The first write and fsync that began after `since` on each mount."""
        for at, mount in enumerate(MOUNTS):
            first = lambda: next((end for begin, end, error in oracle.probes(f"{self.logs}/probe-{at}") if begin >= since and error == 0), None)
            if not becomes(lambda: self.cluster.look_for_ends() or first() is not None, max(RESUME_DEADLINE_S, limit_s), 0.1):
                self.violation(f"writes on {mount} do not succeed {RESUME_DEADLINE_S} s after {what}")
                continue
            self.figure(f"writes on {mount} after {what}", first() - since, limit_s)

    def figure(self, what, seconds, limit_s):
        self.figures.append((what, seconds, limit_s))
        over = "" if seconds <= limit_s else f" (over {limit_s} s)"
        self.say(f"  {what}: {seconds:.1f} s{over}")
        if seconds > limit_s:
            self.violation(f"{what}: {seconds:.1f} s; {limit_s} s are promised")

    def need_healthy(self, when):
        begun = now()
        if not self.cluster.wait_healthy(HEALTHY_DEADLINE_S):
            self.violation(f"not healthy {when} within {HEALTHY_DEADLINE_S} s: {self.cluster.why_unhealthy()}")
        else:
            self.say(f"  healthy {when} after {now() - begun:.1f} s")

    def repaired(self, names):
        """Waits for the scrub, for repair, and until the damaged disks are sound when looked at from outside."""
        end, report, rounds = now() + REPAIR_DEADLINE_S, "", 0
        while now() < end:
            begun, rounds = now(), rounds + 1
            self.wait_for_scrub(names)
            if not self.cluster.wait_healthy(max(1, end - now())):
                break
            self.figure("damage found by the scrub and repaired", now() - begun, faults.REPAIR_LIMIT_S)
            clean = True
            for name in names:
                self.cluster.stop(name)
                sound, report = self.cluster.fsck(name)
                faults.revive(self, name)
                clean &= sound or self.only_asides(name, report)
            if clean:
                if rounds > 1:
                    self.violation(f"damage to {' '.join(names)} was found by {rounds} scrubs, not by one")
                return
        self.violation(f"damage to {' '.join(names)} not repaired within {REPAIR_DEADLINE_S} s: {report[:400]} {self.cluster.why_unhealthy()}")

    def only_asides(self, name, report):
        """What was put aside keeps its damage for a week, and fsck does not tell it apart; the scrub looks at all else."""
        self.wait_for_scrub([name])
        found = (self.cluster.slave_status(name) or {"bad_leaves": -1})["bad_leaves"]
        self.say(f"  fsck of {name}: {report.splitlines()[0]}; its scrub finds {found} bad leaves")
        return found == 0 and "(0 kept aside" not in report

    def wait_for_scrub(self, names):
        """A slave scrubs when it starts, then pauses: its pass is over once the count stands still."""
        for name in names:
            seen = [0, 0]

            def still():
                self.cluster.look_for_ends()
                leaves = (self.cluster.slave_status(name) or {"scrubbed_leaves": 0})["scrubbed_leaves"]
                seen[:] = [leaves, seen[1] + 1 if leaves == seen[0] else 0]
                return seen[1] >= 4

            if not becomes(still, 60, 0.5):
                self.violation(f"{name} still scrubs after 60 s")

    # The whole

    def begin(self):
        for name in [MASTER, *SLAVES]:
            self.cluster.start(name)
        for name in MOUNTS:
            self.cluster.start_mount(name)
        workload.prepare(self.cluster.mountpoint(MOUNTS[0]))
        for number in range(workload.WORKERS):
            self.worker(number, f"worker-{number}", "work")
        for number in range(len(MOUNTS)):
            self.worker(number, f"probe-{number}", "probe")

    def worker(self, number, log, part):
        mount = self.cluster.mountpoint(MOUNTS[number % 2])
        line = [sys.executable, f"{HERE}/workload.py", mount, str(number), str(self.seed), f"{self.logs}/{log}", part]
        with open(f"{self.logs}/{log}.err", "w") as errors:
            self.workers.append((log, subprocess.Popen(line, stderr=errors)))

    def inject(self):
        self.resumed("the start", self.begun, 60)
        deck = faults.deck(random.Random(f"{self.seed}/deck"), self.only)
        end, count = now() + self.minutes * 60, 0
        # A long run deals every card at least once.
        least = len(faults.cards(self.only)) if self.minutes >= WHOLE_DECK_MINUTES else 0
        while now() < end or count < least:
            count += 1
            draws, fault = random.Random(f"{self.seed}/{count}"), next(deck)
            rest = draws.uniform(1, 6)
            fault(self, draws)
            self.injected[fault.__name__] += 1
            self.look_for_workers()
            self.hold(rest)

    def look_for_workers(self):
        for log, process in self.workers:
            if process.poll():
                raise SystemExit(f"{log} ended with status {process.returncode}: {open(f'{self.logs}/{log}.err').read()[-800:]}")

    def end(self):
        self.network.set({})
        with open(f"{self.logs}/stop", "w"):
            pass
        for log, process in self.workers:
            try:
                process.wait(4 * DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.violation(f"{log} hangs in an operation {4 * DEADLINE_S} s after everything was healed")
                process.kill()
        self.look_for_workers()
        self.workers = []
        self.need_healthy("at the end")
        logs = [(number, f"{self.logs}/worker-{number}") for number in range(workload.WORKERS)]
        logs += self.read_back("warm", oracle.FIRST_READER)
        for name in MOUNTS:
            self.ends_cleanly(name)
            self.cluster.start_mount(name)
        logs += self.read_back("cold", oracle.FIRST_READER + 2)
        self.check_disks()
        for name, since, until in self.cluster.given_up:
            self.say(f"{name} found no master and was given up at {since - self.begun:.1f} s, back at {until - self.begun:.1f} s")
            self.windows.lost_mounts.append((MOUNTS.index(name), since, until))
        judge = oracle.Oracle(logs, self.windows, 3 * DEADLINE_S + self.stopped_s)
        for text in judge.judge()[:60]:
            self.violation(text)
        self.violations += judge.violations[60:]
        for text in self.cluster.unexpected:
            self.violation(text)
        self.look_for_panics()
        self.look_for_circles()
        return judge

    def read_back(self, how, first):
        for number in (first, first + 1):
            self.worker(number, f"reader-{number}-{how}", "all")
        for log, process in self.workers:
            if process.wait(600):
                self.violation(f"{log} failed: {open(f'{self.logs}/{log}.err').read()[-800:]}")
        self.workers = []
        return [(number, f"{self.logs}/reader-{number}-{how}") for number in (first, first + 1)]

    def ends_cleanly(self, name):
        status = self.cluster.stop(name)
        told = self.cluster.last_words(name)
        if status == 1 and name in MOUNTS and "could not be flushed" in told:
            # That bytes were lost was said before (the workers were answered with errors); the unmount says it once more.
            self.say(f"{name} ended and said what it had lost: {told[-300:]}")
        elif status != 0:
            self.violation(f"{name} did not end cleanly: {status}: {told}")

    def check_disks(self):
        for name in [*MOUNTS, *SLAVES, MASTER]:
            self.ends_cleanly(name)
        reports = {name: self.cluster.fsck(name) for name in SLAVES}
        for name, (_, report) in reports.items():
            self.say(f"fsck {name}: {report.splitlines()[0]}")
        doubtful = {name: report for name, (sound, report) in reports.items() if not sound}
        if not doubtful:
            return
        for name in [MASTER, *SLAVES]:
            self.cluster.start(name)
        self.need_healthy("to see what is bad")
        for name, report in doubtful.items():
            if not self.only_asides(name, report):
                self.violation(f"fsck of {name}: {report[:600]}")
        for name in [*SLAVES, MASTER]:
            self.ends_cleanly(name)

    def look_for_panics(self):
        for name in [MASTER, *SLAVES, *MOUNTS]:
            lines = self.cluster.text(f"{name}/log").splitlines()
            for line in [line for line in lines if re.search(r"panicked at|a defect; please report", line)][:3]:
                self.violation(f"{name}: {line[:400]}")

    def look_for_circles(self):
        """A chunk is repaired a few times for each fault, not again and again."""
        joined = Counter(re.findall(r"the node has joined chunk=(\d+)", self.cluster.text(f"{MASTER}/log")))
        most = 20 + 3 * sum(self.injected.values())
        for chunk, count in joined.most_common(3):
            if count > most:
                self.violation(f"chunk {chunk} was repaired {count} times, with {sum(self.injected.values())} faults")

    def summary(self, judge):
        worst = {}
        for what, seconds, limit in self.figures:
            what = re.sub(r" on mount-\d", "", what)
            count, most, _ = worst.get(what, (0, 0, 0))
            worst[what] = (count + 1, max(most, seconds), limit)
        for what, (count, most, limit) in worst.items():
            print(f"{what}: {count} times, {most:.1f} s at most ({limit} s allowed)")
        done = sum(judge.acknowledged.values())
        print(f"operations: {dict(judge.acknowledged)}, failed: {dict(judge.failed)}; the slowest {judge.slowest[0]:.1f} s: {judge.slowest[1][:120]}")
        if done < STEPS_PER_MINUTE * self.minutes:
            self.violation(f"only {done} operations acknowledged; at least {STEPS_PER_MINUTE * self.minutes:.0f} have to be")
        for text in self.violations[:20]:
            print(f"violation: {text[:400]}")
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.injected.items()))
        count = sum(self.injected.values())
        print(f"chaos: seed {self.seed}, {self.minutes:g} min: {done} operations acknowledged, {count} faults injected ({kinds}), {len(self.violations)} violations", flush=True)
        return 1 if self.violations else 0

    def close(self):
        """In order where that goes; what is left ends with this process."""
        for _, process in self.workers:
            process.kill()
        for name in list(self.cluster.processes):
            if name in MOUNTS:
                self.cluster.lose_mount(name)
                self.cluster.unmount(name)
            else:
                self.cluster.kill([name])


def main(work, binaries, seed, minutes, only=""):
    def stopped(number, _):
        print(f"stopped by signal {number}", flush=True)
        sys.exit(STOPPED)

    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)
    kinds = set(filter(None, only.split(",")))
    if unknown := kinds - {kind.__name__ for kind in faults.KINDS}:
        raise SystemExit(f"no such kind: {', '.join(unknown)}; there are {', '.join(sorted({kind.__name__ for kind in faults.KINDS}))}")
    run = Run(work, binaries, int(seed), float(minutes), kinds)
    try:
        run.begin()
        run.inject()
        return run.summary(run.end())
    finally:
        run.close()


sys.exit(main(*sys.argv[1:]))
