"""Reads files as Python's `open()` does, .u8 as UTF-8 and .16 as UTF-16, and writes each text as its length and its bytes."""
import struct
import sys

for path in sys.argv[1:]:
    with open(path, encoding={"u8": "utf-8-sig", "16": "utf-16"}[path[-2:]]) as file:
        text = file.read().encode("utf-8")
    sys.stdout.buffer.write(struct.pack("<Q", len(text)) + text)
