"""Damage to the segment files of a slave's disk; the slave may run or not."""
import os

BLOCK = 4096


def damage(segments, how, random):
    """What was done, in words; None if there was nothing that it could be done to."""
    sizes = {path: os.path.getsize(path) // BLOCK for path in segments}
    usable = [path for path, blocks in sizes.items() if blocks > 8]
    if not usable:
        return None
    path = random.choice(usable)
    return f"{os.path.basename(path)}: {HOW[how](path, sizes[path], random)}"


def flip(path, blocks, random):
    at = sorted({random.randrange(1, blocks) for _ in range(random.randint(1, 40))})
    with open(path, "r+b", buffering=0) as file:
        for block in at:
            offset = block * BLOCK + random.randrange(BLOCK)
            old = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([old[0] ^ random.randint(1, 255)]), offset)
    return f"a byte changed in each of {len(at)} blocks ({at[0]} to {at[-1]})"


def swap(path, blocks, random):
    pairs = [random.sample(range(1, blocks), 2) for _ in range(random.randint(1, 10))]
    with open(path, "r+b", buffering=0) as file:
        for left, right in pairs:
            of_left, of_right = (os.pread(file.fileno(), BLOCK, block * BLOCK) for block in (left, right))
            os.pwrite(file.fileno(), of_right, left * BLOCK)
            os.pwrite(file.fileno(), of_left, right * BLOCK)
    return f"{len(pairs)} pairs of blocks swapped, {pairs[0]} the first"


def truncate(path, blocks, random):
    lost = random.randint(1, min(64, blocks - 1))
    os.truncate(path, (blocks - lost) * BLOCK)
    return f"cut by {lost} of {blocks} blocks"


HOW = {"flip": flip, "swap": swap, "truncate": truncate}
