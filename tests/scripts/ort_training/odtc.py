"""Training checkpoints of ONNX Runtime (identifier ODTC, version 2), read and written with the `flatbuffers` package.

    python odtc.py FILE...      one JSON object on stdout: what each file holds; of tensors the SHA-256 of their bytes
"""
import hashlib
import json
import struct
import sys

import flatbuffers
from flatbuffers import number_types as N
from flatbuffers.table import Table

ONNX_TYPES = {"float32": 1, "int64": 7}


class Reader:
    def __init__(self, data):
        self.data = bytearray(data)
        assert self.data[4:8] == b"ODTC", self.data[4:8]
        self.root = Table(self.data, struct.unpack_from("<I", self.data, 0)[0])

    def offset(self, table, field):
        return table.Offset(4 + 2 * field)

    def number(self, table, field, flags, default=0):
        at = self.offset(table, field)
        return table.Get(flags, at + table.Pos) if at else default

    def text(self, table, field):
        at = self.offset(table, field)
        return table.String(at + table.Pos).decode() if at else None

    def table(self, table, field):
        at = self.offset(table, field)
        return Table(self.data, table.Indirect(at + table.Pos)) if at else None

    def tables(self, table, field):
        at = self.offset(table, field)
        if not at:
            return []
        start, count = table.Vector(at), table.VectorLen(at)
        return [Table(self.data, table.Indirect(start + 4 * i)) for i in range(count)]

    def tensor(self, table):
        """Name, and shape, ONNX's type, bytes, place of the bytes modulo 16."""
        at = self.offset(table, 2)
        dims = [table.Get(N.Int64Flags, table.Vector(at) + 8 * i) for i in range(table.VectorLen(at))]
        at = self.offset(table, 4)
        start, length = table.Vector(at), table.VectorLen(at)
        raw = bytes(self.data[start : start + length])
        return self.text(table, 0), (dims, self.number(table, 3, N.Int32Flags), raw, start % 16)

    def tensors(self, table, field):
        return [self.tensor(t) for t in self.tables(table, field)]

    def properties(self, bag, field, value):
        return [[self.text(t, 0), value(t)] for t in self.tables(bag, field)] if bag else []


def dump(data):
    """What the file holds, with every list in the file's order."""
    r = Reader(data)
    module, bag = r.table(r.root, 1), r.table(r.root, 3)
    shown = lambda all: [[n, d, t, hashlib.sha256(raw).hexdigest(), place] for n, (d, t, raw, place) in all]
    group = lambda g: {
        "name": r.text(g, 0),
        "step": r.number(g, 1, N.Int64Flags),
        "learning_rate": r.number(g, 2, N.Float32Flags, 0.0),
        "moments": [[r.text(p, 0), shown(r.tensors(p, 1))] for p in r.tables(g, 3)],
    }
    return {
        "version": r.number(r.root, 0, N.Int32Flags),
        "trainable": shown(r.tensors(module, 0)),
        "frozen": shown(r.tensors(module, 1)),
        "nominal": bool(r.number(module, 2, N.BoolFlags)),
        "external": bool(r.number(module, 3, N.BoolFlags)),
        "groups": [group(g) for g in r.tables(r.root, 2)],
        "ints": r.properties(bag, 0, lambda t: r.number(t, 1, N.Int64Flags)),
        "floats": r.properties(bag, 1, lambda t: r.number(t, 1, N.Float32Flags, 0.0)),
        "strings": r.properties(bag, 2, lambda t: r.text(t, 1)),
    }


def write(trainable, frozen):
    """A checkpoint of these parameters: NumPy arrays by name."""
    b = flatbuffers.Builder(1 << 16)

    def links(offsets):
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return b.EndVector()

    def tensor(name, array):
        named, data = b.CreateString(name), array.tobytes()
        b.StartVector(8, array.ndim, 8)
        for extent in reversed(array.shape):
            b.PrependInt64(extent)
        dims = b.EndVector()
        b.StartVector(1, len(data), 16)
        b.head -= len(data)
        b.Bytes[b.head : b.head + len(data)] = data
        raw = b.EndVector()
        b.StartObject(6)
        b.PrependUOffsetTRelativeSlot(0, named, 0)
        b.PrependUOffsetTRelativeSlot(2, dims, 0)
        b.PrependInt32Slot(3, ONNX_TYPES[array.dtype.name], 0)
        b.PrependUOffsetTRelativeSlot(4, raw, 0)
        return b.EndObject()

    both = [links([tensor(name, array) for name, array in sorted(group.items())]) for group in (trainable, frozen)]
    b.StartObject(4)
    for field, offset in enumerate(both):
        b.PrependUOffsetTRelativeSlot(field, offset, 0)
    module = b.EndObject()
    b.StartObject(4)
    b.PrependInt32Slot(0, 2, 0)
    b.PrependUOffsetTRelativeSlot(1, module, 0)
    b.Finish(b.EndObject(), file_identifier=b"ODTC")
    return bytes(b.Output())


if __name__ == "__main__":
    json.dump({path: dump(open(path, "rb").read()) for path in sys.argv[1:]}, sys.stdout, indent=1)
