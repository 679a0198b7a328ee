"""A network namespace for each node, joined by one switch in user space (switch.py).

The kernel need have neither netem nor a firewall: what netem and iptables would do is done by the switch, for each ordered pair of nodes.
"""
import fcntl, itertools, json, os, struct, subprocess, sys

from common import HERE, run, wait_until

PREFIX = "10.99.0"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
CUT = {"loss": 1.0}


class Network:
    def __init__(self, seed, numbers):
        """numbers: of each node's name the last byte of its address."""
        self.numbers = numbers
        self.holders, ends = {}, {}
        for name, number in numbers.items():
            ends[name] = self.namespace(name, f"gd{number}")
        line = [sys.executable, f"{HERE}/switch.py", str(seed), *(f"{numbers[name]}:{fd}" for name, fd in ends.items())]
        self.switch = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=list(ends.values()))
        for fd in ends.values():
            os.close(fd)
        self.set({})

    def namespace(self, name, device):
        """The namespace ends with its holder, which ends with this program. The switch's end of its interface."""
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
        holder = subprocess.Popen(["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.holders[name] = holder
        own = os.readlink("/proc/self/ns/net")
        wait_until(f"a network namespace for {name}", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, 10)
        run("ip", "link", "set", device, "netns", str(holder.pid))
        self.ip(name, "link set lo up", f"link set {device} txqueuelen 2000 up", f"addr add {self.address(name)}/24 dev {device}")
        return fd

    def address(self, name):
        return f"{PREFIX}.{self.numbers[name]}"

    def enter(self, name):
        """The beginning of a command line that runs in the node's namespace; mounts stay common."""
        return ["nsenter", "-t", str(self.holders[name].pid), "-n", "--"]

    def ip(self, name, *lines):
        run(*self.enter(name), "ip", "-batch", "-", input="\n".join(lines) + "\n")

    def link(self, name, up):
        self.ip(name, f"link set gd{self.numbers[name]} {'up' if up else 'down'}")

    def set(self, rules):
        """The only rules from now on, of (from, to): names."""
        text = {f"{self.numbers[a]}>{self.numbers[b]}": rule for (a, b), rule in rules.items()}
        self.switch.stdin.write(json.dumps(text) + "\n")
        self.switch.stdin.flush()
        if self.switch.stdout.readline().strip() != "done":
            raise SystemExit("the switch has ended")

    def pairs(self, names):
        """Both directions between each of these and everybody."""
        return [(a, b) for a, b in itertools.permutations(self.numbers, 2) if a in names or b in names]

    def between(self, left, right):
        return [(a, b) for a, b in itertools.permutations(self.numbers, 2) if (a in left and b in right) or (a in right and b in left)]

    def cut(self, pairs):
        self.set({pair: CUT for pair in pairs})
