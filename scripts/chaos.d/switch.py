"""The wire: every packet between two nodes passes here, and is lost, held up, doubled or changed as the rules say.

    switch.py SEED NUMBER:FD ...

FD is the other end of the node's network interface (TUN); NUMBER is the last byte of its address. A line on standard input is the
new set of rules: {"1>11": {"loss": 1.0}, ...}; each is answered with a line. Ends with its input.
"""
import heapq, json, os, random, select, sys, time

BURST = 64  # packets taken from one node in a row


class Switch:
    def __init__(self, seed, ends):
        self.random = random.Random(f"{seed}/packets")
        self.ends = ends
        self.number_of = {fd: number for number, fd in ends.items()}
        self.rules = {}
        self.held = []  # (due, order, fd, packet)
        self.order = 0

    def run(self):
        poll = select.epoll()
        poll.register(0, select.EPOLLIN)
        for fd in self.ends.values():
            os.set_blocking(fd, False)
            poll.register(fd, select.EPOLLIN)
        while True:
            wait = max(0.0, self.held[0][0] - time.monotonic()) if self.held else -1
            for fd, _ in poll.poll(wait):
                if fd == 0:
                    if not self.obey():
                        return
                else:
                    self.take(fd)
            now = time.monotonic()
            while self.held and self.held[0][0] <= now:
                _, _, fd, packet = heapq.heappop(self.held)
                self.give(fd, packet)

    def obey(self):
        line = sys.stdin.readline()
        if not line:
            return False
        self.rules = {tuple(map(int, pair.split(">"))): rule for pair, rule in json.loads(line).items()}
        print("done", flush=True)
        return True

    def take(self, fd):
        source = self.number_of[fd]
        for _ in range(BURST):
            try:
                packet = os.read(fd, 65536)
            except (BlockingIOError, OSError):  # nothing more, or the interface is down
                return
            if packet[0] >> 4 != 4:
                continue
            target = self.ends.get(packet[19])
            if target is None:
                continue
            rule = self.rules.get((source, packet[19]))
            if rule is None:
                self.give(target, packet)
            else:
                self.trouble(rule, target, packet)

    def trouble(self, rule, target, packet):
        draw = self.random.random
        if draw() < rule.get("loss", 0):
            return
        if draw() < rule.get("corrupt", 0):
            packet = self.corrupted(packet)
        for _ in range(2 if draw() < rule.get("duplicate", 0) else 1):
            delay = rule.get("delay_ms", 0) / 1000
            if draw() < rule.get("reorder", 0):
                delay += draw() * rule.get("late_ms", 20) / 1000
            if delay:
                self.order += 1
                heapq.heappush(self.held, (time.monotonic() + delay, self.order, target, packet))
            else:
                self.give(target, packet)

    def corrupted(self, packet):
        """Changes bytes of the datagram. Without a UDP checksum, or the kernel would drop it and nothing would be tested."""
        head = (packet[0] & 15) * 4
        if packet[9] != 17 or len(packet) <= head + 8:
            return packet
        changed = bytearray(packet)
        changed[head + 6 : head + 8] = b"\0\0"
        for _ in range(self.random.randint(1, 4)):
            changed[self.random.randrange(head + 8, len(changed))] ^= self.random.randint(1, 255)
        return bytes(changed)

    def give(self, fd, packet):
        try:
            os.write(fd, packet)
        except OSError:  # its interface is down: as on any wire, the packet is gone
            pass


if __name__ == "__main__":
    Switch(sys.argv[1], {int(number): int(fd) for number, fd in (end.split(":") for end in sys.argv[2:])}).run()
