"""The faults. Each draws what it needs from its own random numbers first, so that the seed determines it whatever the time does;
then injects, holds, heals, and says when writes have to succeed again. One kind at a time: what comes together is a kind of its own.
"""
import signal

from cluster import CLONE, MASTER, MOUNTS, SLAVES
from common import becomes, now, run as command
from damage import damage

LEASE_S = 8
KILL_LIMIT_S, HEAL_LIMIT_S, REPAIR_LIMIT_S = 10, 15, 60
NODES = [MASTER, *SLAVES, *MOUNTS]


def kill_slave(run, random):
    name, rest = random.choice(SLAVES), random.uniform(0.3, 15)
    run.say(f"kill -9 {name} for {rest:.1f} s")
    since = now()
    run.cluster.kill([name])
    # Enough members remain: writes go on before it is back.
    run.hold(rest)
    run.cluster.start(name)
    run.resumed("kill of a slave", since, KILL_LIMIT_S)


def kill_slaves(run, random):
    names, rest = random.sample(SLAVES, random.randint(2, len(SLAVES))), random.uniform(0.3, 15)
    run.say(f"kill -9 {' '.join(names)} for {rest:.1f} s")
    run.cluster.kill(names)
    run.hold(rest)
    since = start_all(run, names)
    run.resumed("restart of several slaves", since, HEAL_LIMIT_S)


def kill_master(run, random):
    rest = random.choice([0, random.uniform(0, 3), random.uniform(3, 14)])
    run.say(f"kill -9 {MASTER} for {rest:.1f} s")
    run.cluster.kill([MASTER])
    run.hold(rest)
    since = start_all(run, [MASTER])
    run.resumed("restart of the master", since, KILL_LIMIT_S)


def kill_all(run, random):
    rest, order = random.uniform(0, 6), random.sample([MASTER, *SLAVES], 5)
    with_mounts = random.random() < 0.5
    run.say(f"kill -9 of all{' and the daemons of both mounts' if with_mounts else ''} for {rest:.1f} s, back {' '.join(order)}")
    run.cluster.kill([*order, *(MOUNTS if with_mounts else [])])
    run.hold(rest)
    since = start_all(run, order)
    run.resumed("restart of all", since, HEAL_LIMIT_S)


def kill_mount(run, random):
    names, times = random.sample(MOUNTS, random.randint(1, 2)), random.randint(1, 3)
    run.say(f"kill -9 the daemon of {' '.join(names)}, {times} times")
    for _ in range(times):
        since = now()
        run.cluster.kill(names)
        run.resumed("kill of a mount's daemon", since, KILL_LIMIT_S)


def lose_mount(run, random):
    name, rest = random.choice(MOUNTS), random.uniform(0, 12)
    run.say(f"{name} is lost with its keeper for {rest:.1f} s")
    since = now()
    run.cluster.lose_mount(name)
    run.hold(rest)
    run.cluster.unmount(name)
    run.cluster.start_mount(name)
    run.windows.lost_mounts.append((MOUNTS.index(name), since, now() + 1))
    run.resumed("return of a lost mount", now(), HEAL_LIMIT_S)


def freeze(run, random):
    name = random.choice([MASTER, *SLAVES, *MOUNTS])
    leases = random.choices([0.3, 1, 2, 10], [2, 4, 4, 1 if run.minutes >= 5 else 0])[0]
    run.say(f"SIGSTOP {name} for {leases} leases")
    run.stopped_s = max(run.stopped_s, leases * LEASE_S)
    since = now()
    run.cluster.signal(name, signal.SIGSTOP)
    run.hold(leases * LEASE_S)
    run.cluster.signal(name, signal.SIGCONT)
    if name in SLAVES:
        run.resumed("a frozen slave", since, KILL_LIMIT_S)
    run.resumed("thawing", now(), HEAL_LIMIT_S)


def isolate(run, random):
    names, rest = random.sample(NODES, random.randint(1, 2)), random.uniform(1, 20)
    run.say(f"{' '.join(names)} cut off for {rest:.1f} s")
    partition(run, run.network.pairs(names), rest)


def split(run, random):
    nodes = random.sample(NODES, len(NODES))
    at, rest = random.randint(2, 5), random.uniform(3, 20)
    run.say(f"split {' '.join(nodes[:at])} | {' '.join(nodes[at:])} for {rest:.1f} s")
    partition(run, run.network.between(nodes[:at], nodes[at:]), rest)


def bridge(run, random):
    nodes = random.sample(NODES, len(NODES))
    at, rest = random.randint(2, 4), random.uniform(3, 20)
    run.say(f"split {' '.join(nodes[1:at])} | {' '.join(nodes[at:])} for {rest:.1f} s, {nodes[0]} sees both")
    partition(run, run.network.between(nodes[1:at], nodes[at:]), rest)


def one_way(run, random):
    name, others = random.choice(NODES), random.sample(NODES, random.randint(1, len(NODES)))
    out, rest = random.random() < 0.5, random.uniform(3, 20)
    others = [other for other in others if other != name] or [next(other for other in NODES if other != name)]
    pairs = [(name, other) if out else (other, name) for other in others]
    run.say(f"one way: nothing {'from' if out else 'to'} {name} {'to' if out else 'from'} {' '.join(others)} for {rest:.1f} s")
    partition(run, pairs, rest)


def flapping(run, random):
    names = random.sample(NODES, random.randint(1, 2))
    turns = [(random.uniform(0.2, 4), random.uniform(0.2, 4)) for _ in range(random.randint(3, 8))]
    run.say(f"{' '.join(names)} flapping, {len(turns)} times")
    for off, on in turns:
        run.network.cut(run.network.pairs(names))
        run.hold(off)
        run.network.set({})
        run.hold(on)
    run.resumed("flapping", now(), HEAL_LIMIT_S)


def partition(run, pairs, rest):
    run.network.cut(pairs)
    run.hold(rest)
    run.network.set({})
    run.resumed("a partition", now(), HEAL_LIMIT_S)


def link_down(run, random):
    name, rest = random.choice(NODES), random.uniform(0.5, 20)
    run.say(f"link of {name} down for {rest:.1f} s")
    run.network.link(name, False)
    run.hold(rest)
    run.network.link(name, True)
    run.resumed("a link that was down", now(), HEAL_LIMIT_S)


def trouble(random):
    rule = {"loss": random.uniform(0, 0.3), "delay_ms": random.choice([0, 5, 60]), "reorder": random.uniform(0, 0.3), "late_ms": 50}
    rule |= {"duplicate": random.uniform(0, 0.2), "corrupt": random.uniform(0, 0.2)}
    for kind in random.sample(["loss", "delay_ms", "reorder", "duplicate", "corrupt"], random.randint(0, 3)):
        rule[kind] = 0
    return rule


def packets(run, random):
    names = random.choice([NODES, [MASTER], random.sample(SLAVES, 2), [random.choice(MOUNTS)]])
    rule, rest = trouble(random), random.uniform(8, 25)
    run.say(f"packets of {'all' if names is NODES else ' '.join(names)} for {rest:.1f} s: {worded(rule)}")
    run.network.set({pair: rule for pair in run.network.pairs(names)})
    run.hold(rest)
    run.network.set({})
    run.resumed("packet trouble", now(), HEAL_LIMIT_S)


def packets_and_kill(run, random):
    rule, name, rest = trouble(random), random.choice([MASTER, *SLAVES]), random.uniform(1, 8)
    run.say(f"kill -9 {name} for {rest:.1f} s while packets of all: {worded(rule)}")
    run.network.set({pair: rule for pair in run.network.pairs(NODES)})
    run.hold(3)
    run.cluster.kill([name])
    run.hold(rest)
    run.cluster.start(name)
    run.hold(4)
    run.network.set({})
    run.resumed("packet trouble with a kill", now(), HEAL_LIMIT_S)


def worded(rule):
    return ", ".join(f"{name} {value:.2f}" if value < 1 else f"{name} {value}" for name, value in rule.items() if value)


def storm(run, random):
    """Kills, restarts, freezes and cuts upon each other, without a chance to recover in between."""
    events = []
    for _ in range(random.randint(8, 25)):
        what = random.choices(["kill", "start", "freeze", "thaw", "cut", "heal", "packets"], [5, 4, 2, 2, 2, 2, 1])[0]
        events.append((what, random.choice(NODES), random.sample(NODES, random.randint(1, 3)), trouble(random), random.choice([0, 0.1, 0.5, 2, 4])))
    run.say(f"storm of {len(events)} events")
    down, frozen = [], []
    for what, name, names, rule, rest in events:
        if what == "kill" and name not in down:
            run.say(f"  kill -9 {name}")
            run.cluster.kill([name])
            down += [name] if name not in MOUNTS else []
            frozen = [other for other in frozen if other != name]
        elif what == "start" and down:
            run.say(f"  start {down[0]}")
            run.cluster.start(down.pop(0))
        elif what == "freeze" and name not in down + frozen:
            run.say(f"  SIGSTOP {name}")
            run.cluster.signal(name, signal.SIGSTOP)
            frozen.append(name)
        elif what == "thaw" and frozen:
            run.say(f"  SIGCONT {frozen[0]}")
            run.cluster.signal(frozen.pop(0), signal.SIGCONT)
        elif what == "cut":
            run.say(f"  cut off {' '.join(names)}")
            run.network.cut(run.network.pairs(names))
        elif what == "heal":
            run.network.set({})
        elif what == "packets":
            run.say(f"  packets of {' '.join(names)}: {worded(rule)}")
            run.network.set({pair: rule for pair in run.network.pairs(names)})
        run.hold(rest)
    for name in frozen:
        run.cluster.signal(name, signal.SIGCONT)
    run.network.set({})
    since = start_all(run, down)
    run.resumed("a storm", since, HEAL_LIMIT_S)


def start_all(run, names):
    for name in names:
        run.cluster.start(name)
    return now()


# Damage: never to more than two of three replicas before everything was whole again


def damage_disks(run, random):
    names, how, running = random.sample(SLAVES, random.randint(1, 2)), random.choice(["flip", "swap", "truncate"]), random.random() < 0.5
    rest = random.uniform(1, 6)
    run.say(f"{how} on {' '.join(names)}, {'running' if running else 'stopped by kill -9'}")
    run.need_healthy("before damage")
    if not running:
        run.cluster.kill(names)
    for name in names:
        run.say(f"  {name} {damage(run.cluster.segments(name), how, random)}")
    if running:
        run.hold(rest)
        run.cluster.kill(names)
    for name in names:
        revive(run, name)
    run.repaired(names)


def revive(run, name):
    """Starts a slave whose disk is damaged. One that may refuse it is given an empty disk, as its operator would."""
    run.cluster.start(name)
    ended = lambda: run.cluster.processes[name].poll() is not None
    alive = lambda: (run.cluster.slave_status(name) or {}).get("state") == "alive"
    becomes(lambda: ended() or alive(), 30, 0.3)
    if ended():
        run.say(f"  {name} refuses its disk and is given an empty one: {run.cluster.last_words(name)}")
        del run.cluster.processes[name]
        run.cluster.wipe(name)
        run.cluster.start(name)


def wipe(run, random):
    name, rest = random.choice(SLAVES), random.uniform(0, 12)
    run.say(f"{name} killed and its disk wiped, back after {rest:.1f} s")
    run.need_healthy("before a wipe")
    since = now()
    run.cluster.kill([name])
    run.cluster.wipe(name)
    run.hold(rest)
    run.cluster.start(name)
    run.resumed("a wiped slave", since, KILL_LIMIT_S)
    run.need_healthy("after a wipe")


def rollback(run, random):
    """A disk comes back from the past, as from a backup: stale replicas, and some that ought to be gone."""
    names, rest = random.sample(SLAVES, random.randint(1, 2)), random.uniform(2, 12)
    run.say(f"the disks of {' '.join(names)} set back by {rest:.1f} s")
    run.need_healthy("before disks are set back")
    cluster = run.cluster
    cluster.kill(names)
    for name in names:
        command("cp", "-a", cluster.disk(name), f"{run.work}/{name}.past")
    start_all(run, names)
    run.hold(rest)
    run.need_healthy("before disks are set back")
    since = now()
    cluster.kill(names)
    for name in names:
        command("rm", "-r", cluster.disk(name))
        command("cp", "-a", f"{run.work}/{name}.past", cluster.disk(name))
        command("rm", "-r", f"{run.work}/{name}.past")
        revive(run, name)
    run.resumed("disks set back", since, HEAL_LIMIT_S)
    run.repaired(names)


def clone(run, random):
    name = random.choice(SLAVES)
    run.say(f"the disk of {name} cloned to {CLONE}")
    run.need_healthy("before a clone")
    home, cluster = f"{run.cluster.home}/{CLONE}", run.cluster
    token = command(*run.network.enter(MASTER), cluster.godrive, "token", "--dir", cluster.home, "--role", "slave").strip().split()[-1]
    command("mkdir", "-p", home)
    cluster.kill([name])
    command("cp", "-a", cluster.disk(name), f"{home}/disk-1")
    cluster.start(name)
    alive = lambda: (cluster.slave_status(name) or {}).get("state") == "alive"
    if not becomes(alive, 30, 0.3):
        run.violation(f"{name} is not alive 30 s after its start")
    listen = f"{run.network.address(CLONE)}:7500"
    cluster.spawn(CLONE, f"{cluster.binaries}/godrive-slave", "--join", token, "--dir", home, "--listen", listen)

    refused = lambda: "is already served by node" in cluster.text(f"{CLONE}/log")
    if not becomes(refused, 20, 0.3):
        run.violation(f"the clone of {name}'s disk was not refused within 20 s: {cluster.last_words(CLONE)}")
    if len(nodes := (cluster.status() or {"nodes": []})["nodes"]) > len(SLAVES):
        run.violation(f"the clone of {name}'s disk became a node: {nodes}")
    cluster.kill([CLONE])
    command("rm", "-r", home)


def full_disk(run, random):
    names, rest = random.choice([[random.choice(SLAVES)], SLAVES]), random.uniform(8, 20)
    run.say(f"disks of {' '.join(names)} full for {rest:.1f} s")
    run.need_healthy("before full disks")
    since = now()
    for name in names:
        run.cluster.fill(name)
    run.hold(rest)
    for name in names:
        run.cluster.free(name)
    healed = now()
    # What was in a cache when there was no room may be told at the next call.
    run.windows.full_disks.append((None, since, healed + 60))
    run.windows.no_room.append((None, since, healed))
    run.resumed("full disks", healed, HEAL_LIMIT_S)


KINDS = [kill_slave, kill_slaves, kill_master, kill_all, kill_mount, lose_mount, freeze, freeze, isolate, split, bridge, one_way]
KINDS += [flapping, link_down, packets, packets, packets_and_kill, storm, storm, storm, damage_disks, damage_disks, wipe, rollback, clone, full_disk]


def cards(only):
    return [kind for kind in KINDS if not only or kind.__name__ in only]


def deck(random, only):
    """Without end: all kinds in a random order, then again in another one."""
    kinds = cards(only)
    while True:
        yield from random.sample(kinds, len(kinds))
