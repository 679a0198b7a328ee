"""The oracle finds what it is there for, and nothing in a history that is right: python3 scripts/chaos.d/test_oracle.py"""
import errno, json, os, tempfile, unittest

import oracle

EIO, ENOSPC = errno.EIO, errno.ENOSPC


def judged(*steps, windows=None):
    """steps: (worker, kind, *what, begin, end, errno)."""
    with tempfile.TemporaryDirectory() as folder:
        logs = {}
        for worker, *step in steps:
            logs.setdefault(worker, []).append(json.dumps(step))
        for worker, lines in logs.items():
            with open(f"{folder}/{worker}", "w") as log:
                log.write("\n".join(lines) + "\n")
        paths = [(worker, f"{folder}/{worker}") for worker in logs]
        return oracle.Oracle(paths, windows or oracle.Windows(), 50).judge()


def write(sequence, at):
    return (0, "write", "shared-0", 6, sequence, at, at + 1, 0)


def sync(sequence, at, error=0, how="fsync"):
    return (0, "sync", how, "shared-0", [[6, sequence]], at, at + 1, error)


def read(worker, sequence, at, wrong=None):
    return (worker, "read", "shared-0", [[6, sequence, wrong]], at, at + 1, 0)


def whole(worker, generation, at, wrong=None):
    return (worker, "whole", "own-0-0", generation, wrong, at, at + 1, 0)


class Blocks(unittest.TestCase):
    def found(self, word, *steps):
        texts = judged(*steps)
        self.assertEqual(len(texts), 1, texts)
        self.assertIn(word, texts[0])

    def test_what_was_acknowledged_is_read(self):
        self.assertEqual(judged(write(1, 0), sync(1, 2), read(1, 1, 4), write(2, 6), read(1, 2, 8)), [])
        self.found("1 was acknowledged", write(1, 0), sync(1, 2), read(1, 0, 4))
        self.found("1 was acknowledged", write(1, 0), sync(1, 2, how="close"), read(0, 0, 4))

    def test_an_acknowledged_write_was_seen_since_it_returned(self):
        self.found("1 was acknowledged", write(1, 0), read(1, 0, 2), sync(1, 8))

    def test_what_failed_may_be_seen_or_not(self):
        for seen in (0, 1):
            self.assertEqual(judged(write(1, 0), sync(1, 2, EIO), read(1, seen, 4)), [])

    def test_nothing_comes_back_behind_an_acknowledged_write(self):
        self.found("2 was acknowledged", write(1, 0), sync(1, 2, EIO), write(2, 4), sync(2, 6), read(1, 1, 8))

    def test_what_another_mount_has_seen_stays(self):
        self.found("1 was acknowledged", write(1, 0), read(1, 1, 2), read(3, 0, 4))
        # On the writer's own mount it may have come from a cache that was lost.
        self.assertEqual(judged(write(1, 0), read(2, 1, 2), sync(1, 4, EIO), read(1, 0, 6)), [])

    def test_the_future_and_damage(self):
        self.found("not written by then", read(1, 1, 0), write(1, 4))
        self.found("torn", write(1, 0), read(1, None, 2, "torn"))


class Others(unittest.TestCase):
    def test_replaced_files(self):
        moved = [(0, "replace", "own-0-0", g, 3, at, at + 1, e) for g, at, e in ((1, 0, 0), (2, 4, EIO), (3, 8, 0))]
        self.assertEqual(judged(*moved, whole(1, 1, 2), whole(1, 2, 6), whole(1, 3, 10)), [])
        self.assertEqual(judged(*moved, whole(1, 1, 6)), [])
        for late in (whole(1, 1, 10), whole(1, 2, 10), whole(1, 0, 10), whole(1, 3, 2), whole(1, None, 2), whole(1, 3, 10, "torn")):
            self.assertEqual(len(judged(*moved, late)), 1, late)

    def test_names(self):
        created, removed, settled = (0, "create", "0-1", 0, 1, 0), (0, "unlink", "0-1", 4, 5, 0), (0, "syncdir", "names", 6, 7, 0)
        listed = lambda at, *names: (1, "list", list(names), at, at + 1, 0)
        right = judged(created, removed, settled, listed(2, "0-1"), listed(4, "0-1"), listed(4.5), listed(8))
        self.assertEqual(right, [])
        self.assertIn("missing", judged(created, removed, settled, listed(2))[0])
        self.assertIn("removed and there", judged(created, removed, settled, listed(8, "0-1"))[0])
        self.assertIn("twice", judged(created, listed(2, "0-1", "0-1"))[0])
        self.assertIn("never created", judged(listed(2, "0-9"))[0])
        # A removal that was not made stable may be undone.
        self.assertEqual(judged(created, removed, listed(8, "0-1")), [])

    def test_errors(self):
        windows = oracle.Windows()
        windows.full_disks.append((None, 10, 20))
        windows.no_room.append((None, 10, 20))
        failed = lambda kind, at, error: judged((0, kind, "shared-0", [], at, at + 1, error), windows=windows)
        self.assertEqual(failed("open", 0, EIO), [])
        self.assertEqual(failed("open", 12, ENOSPC), [])
        self.assertEqual(len(failed("open", 0, ENOSPC)), 1)
        self.assertEqual(len(failed("read", 12, EIO)), 1)
        self.assertEqual(len(failed("open", 0, errno.EBADF)), 1)
        slow = lambda at: judged((0, "list", [], at, at + 11, 0), windows=windows)
        self.assertEqual((len(slow(0)), len(slow(12))), (0, 1))
        self.assertEqual(len(judged((0, "open", "shared-0", 0, 60, 0))), 1)
        # For the readers at the end nothing fails.
        self.assertEqual(len(judged((100, "read", "shared-0", [], 0, 1, EIO))), 1)


if __name__ == "__main__":
    unittest.main()
