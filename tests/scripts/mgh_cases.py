"""Random MGH files, and what nibabel reads from them: `mgh_cases.py FOLDER COUNT`.

For each case FOLDER gets the file, and each of its frames as nibabel's MGHImage reads it in a NIfTI-2 file of float64
with the same matrix. The list of cases is printed as JSON. What nibabel does not read (an intent in the version, the
types 2 and 6) it reads in a copy without it.

A file whose goodRASFlag is not positive has no orientation. FreeSurfer then assumes coronal slices of 1 mm (`mghRead` and
`setDirectionCosine(MRI_CORONAL)` in utils/mriio.cpp: x_r -1, y_s -1, z_a 1). nibabel means the same, but its default
stands in the header's field untransposed, so that it reads left, superior, posterior: the head upside down. FreeSurfer's
file, FreeSurfer's default: nibabel gets a copy with FreeSurfer's numbers.
"""

import gzip
import json
import struct
import sys
from pathlib import Path

import nibabel
import numpy as np
from nibabel.freesurfer.mghformat import MGHImage

HEADER = 284
# FreeSurfer's default: voxel sizes, direction cosines of x, y and z, the centre
CORONAL = struct.pack(">15f", 1, 1, 1, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0)
# FreeSurfer's code, the type in the file, and the code and the type that nibabel reads instead
TYPES = [(0, "u1", 0, "u1"), (1, "i4", 1, "i4"), (2, "i8", 1, "i4"), (3, "f4", 3, "f4"), (4, "i2", 4, "i2"),
         (6, "f4", 3, "f4"), (10, "u2", 10, "u2")]


def rotation(rng):
    """A random rotation: none, a small one or any."""
    size = rng.choice([0.0, 0.3, 4.0])
    turn, _ = np.linalg.qr(np.eye(3) + size * rng.normal(size=(3, 3)))
    return turn * np.sign(np.diag(turn))


def matrix(rng):
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    spacing = rng.choice([1.0, 2.0, 0.5, *rng.uniform(0.4, 4.0, 3)], 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation(rng) @ axes @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


def voxels(rng, shape, kind):
    if kind == "f4":
        data = rng.normal(100, 300, shape).astype("f4")
        data[rng.random(shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf])
        return data
    low, high = {"u1": (0, 256), "i2": (-32768, 32768), "u2": (0, 65536), "i4": (-2**31, 2**31)}[kind]
    return rng.integers(low, high, shape).astype(kind)


def tag(number, data):
    return struct.pack(">iq", number, len(data)) + data


def footer(rng):
    numbers = struct.pack(">5f", 2300, 0.15, 2.98, 900, 256)
    tags = tag(41, b"UNKNOWN") + tag(42, bytes(44_000)) + tag(3, b"mri_convert a b\0") + struct.pack(">i", 1) + b"odd"
    return [b"", numbers, numbers[:int(rng.integers(1, 20))], numbers + tags, bytes(300_000)][rng.integers(5)]


def case(rng, number, folder):
    code, stored, known, kind = TYPES[number % len(TYPES)]
    frames = int(rng.choice([1, 1, 1, 2, 3]))
    data = voxels(rng, [*rng.integers(2, 17, 3), frames], kind)
    # nibabel does not write a fourth axis of one frame
    written = MGHImage(data[..., 0] if frames == 1 else data, matrix(rng)).to_bytes()
    body = data.astype(">" + stored).tobytes(order="F")
    assert stored != kind or written[HEADER:HEADER + len(body)] == body
    flag = int(rng.choice([1, 1, 1, 1, 256, 0, -1]))
    intent = int(rng.choice([0, 0, 1, 2, 6, 300]))

    placed = written[30:90]

    def header(version, code, flag, placed):
        fields = struct.pack(">i", version) + written[4:20] + struct.pack(">iih", code, 0, flag) + placed
        return fields + bytes(HEADER - len(fields))

    bytes_ = header(intent << 8 | 1, code, flag, placed) + body + footer(rng)
    packed = bool(rng.integers(2))
    # the name says nothing
    name = f"{number}{rng.choice(['.mgz', '.mgh', '.mgh.gz', '.nii', ''])}"
    (folder / name).write_bytes(gzip.compress(bytes_, 1) if packed else bytes_)

    body = data.astype(">" + kind).tobytes(order="F")
    image = MGHImage.from_bytes(header(1, known, 1, placed if flag > 0 else CORONAL) + body)
    read = image.get_fdata().reshape(data.shape)
    assert np.array_equal(read, data.astype("f8"), equal_nan=True)
    references = []
    for frame in range(frames):
        references.append(f"{number}_{frame}.reference.nii")
        nibabel.save(nibabel.Nifti2Image(read[..., frame], image.affine.astype("f8")), folder / references[-1])
    return {"file": name, "gzip": packed, "stated": flag > 0, "datatype": np.dtype(stored).name, "shape": data.shape[:3],
            "affine": image.affine.tolist(), "axcodes": "".join(nibabel.aff2axcodes(image.affine)),
            "references": references}


def main():
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps([case(np.random.default_rng(number), number, folder) for number in range(count)]))


main()
