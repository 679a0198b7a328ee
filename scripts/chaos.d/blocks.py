"""The stamped block: which file, which block, who wrote it and as the how-manieth; a sum over everything."""
import hashlib, struct

SIZE = 4096
HEAD = struct.Struct("<8s16sIIQI")  # magic, file, block, writer, sequence, blocks of the file
MAGIC, SUM_BYTES = b"GDCHAOS1", 16


def key(file):
    return hashlib.blake2b(file.encode(), digest_size=16).digest()


def stamp(file, block, writer, sequence, blocks=0):
    head = HEAD.pack(MAGIC, key(file), block, writer, sequence, blocks)
    fill = hashlib.blake2b(head).digest()
    body = (head + fill * (SIZE // len(fill)))[: SIZE - SUM_BYTES]
    return body + hashlib.blake2b(body, digest_size=SUM_BYTES).digest()


def read_stamp(data, file, block):
    """(sequence, blocks of the file, None), or (0, 0, None) of a hole or behind the end, or (None, 0, what is wrong with it)."""
    if not data.strip(b"\0"):
        return 0, 0, None
    if len(data) != SIZE:
        return None, 0, f"{len(data)} bytes"
    magic, of, at, _, sequence, blocks = HEAD.unpack_from(data)
    if hashlib.blake2b(data[:-SUM_BYTES], digest_size=SUM_BYTES).digest() != data[-SUM_BYTES:]:
        return None, 0, f"torn: {'a stamp' if magic == MAGIC else 'no stamp'}, sequence {sequence}"
    if (of, at) != (key(file), block):
        return None, 0, f"foreign: block {at} of {'this' if of == key(file) else 'another'} file, sequence {sequence}"
    return sequence, blocks, None
