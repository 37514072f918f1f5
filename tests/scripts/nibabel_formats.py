"""nibabel_formats.py DIR: scans in other units, of Analyze 7.5 and with one half of a pair named, as nibabel writes them.

Prints a JSON list: `file` (to be read, with `orientation` where it is stated) and `reference`, a float64 NIfTI-2 file of
the voxels that nibabel reads from it and of the affine in mm.
"""
import gzip
import json
import os
import shutil
import sys

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt

folder = sys.argv[1]
random = np.random.default_rng(15)
cases = []


def reference(name, data, affine):
    path = f"{name}.reference.nii"
    nib.save(nib.Nifti2Image(np.asarray(data, np.float64), affine), os.path.join(folder, path))
    return path


def turned(spacing, angle):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, s, c], [0, -c, s]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    affine[:3, 3] = [-31, 17, 9]
    return affine


# nibabel carries xyzt_units along and scales nothing: its own affine is scaled here.
for unit, factor in (("meter", 1000.0), ("micron", 0.001)):
    for number, kind in enumerate((nib.Nifti1Image, nib.Nifti2Image)):
        for form in ("sform", "qform", "none"):
            name = f"{unit}{number + 1}{form}"
            data = random.integers(-300, 900, (19, 23, 17)).astype(np.int16)
            image = kind(data, turned(np.array([3.7, 2.3, 5.1]) / factor, 0.2 + 0.1 * number))
            image.header.set_xyzt_units(unit, "sec")
            image.set_sform(image.affine, code=1 if form == "sform" else 0)
            image.set_qform(image.affine, code=1 if form == "qform" else 0)
            nib.save(image, os.path.join(folder, f"{name}.nii.gz"))
            again = nib.load(os.path.join(folder, f"{name}.nii.gz"))
            affine = again.affine.copy()
            affine[:3] *= factor
            cases.append(dict(file=f"{name}.nii.gz", reference=reference(name, again.get_fdata(), affine),
                              units={"meter": "metre", "micron": "micrometre"}[unit]))


def stated(codes, spacing, shape):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(axcodes2ornt(codes)):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


classes = (nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage)
types = (np.uint8, np.int16, np.int32, np.float32, np.float64)
orientations = ("LAS", "RAS", "PSR", "IAL", "ALS", "SRP", "RPI", "LPI", "AIR", "SLA")
for number, codes in enumerate(orientations):
    kind, dtype, order = classes[number % 3], types[number % 5], "<>"[number // 5]
    shape, spacing = (21, 18 + number, 25), (2.1, 3.3, 1.7 + 0.1 * number)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    header.set_data_shape(shape if number % 2 else shape + (1,))
    header.set_zooms(spacing if number % 2 else spacing + (1.0,))
    bytes_header = bytearray(header.binaryblock)
    name = f"analyze{number}"
    if kind is not nib.AnalyzeImage:
        # a slope, and with SPM2 an intercept or the stored and calibrated ranges in place of both
        bytes_header[112:116] = np.array([0.5 + number], f"{order}f4").tobytes()
    if kind is nib.Spm2AnalyzeImage:
        bytes_header[116:120] = np.array([-7.25 if number % 2 else np.nan], f"{order}f4").tobytes()
    if number == 8:
        bytes_header[112:116] = bytes(4)
        bytes_header[124:132] = np.array([12.5, 2.5], f"{order}f4").tobytes()
        bytes_header[140:148] = np.array([400, -100], f"{order}i4").tobytes()
    data = random.integers(0, 250, shape).astype(np.dtype(dtype).newbyteorder(order))
    with open(os.path.join(folder, f"{name}.hdr"), "wb") as file:
        file.write(bytes_header)
    with open(os.path.join(folder, f"{name}.img"), "wb") as file:
        file.write(data.tobytes("F"))
    voxels = nib.load(os.path.join(folder, f"{name}.hdr")).get_fdata().reshape(shape)
    if kind is nib.AnalyzeImage:
        assert np.array_equal(voxels, kind.from_filename(os.path.join(folder, f"{name}.hdr")).get_fdata().reshape(shape))
    known = dict(reference=reference(name, voxels, stated(codes, spacing, shape)), orientation=codes)
    cases.append(dict(file=f"{name}.hdr", **known))
    # the other half, packed or not, in capitals or not
    for half in ("hdr", "img"):
        packed = f"{name}z.{half}.gz" if number % 2 else f"{name}Z.{half.upper()}"
        opened = gzip.open if number % 2 else open
        with open(os.path.join(folder, f"{name}.{half}"), "rb") as file, opened(os.path.join(folder, packed), "wb") as to:
            shutil.copyfileobj(file, to)
    cases.append(dict(file=packed, **known))
    cases.append(dict(file=f"{name}.img", **known))

# NIfTI without a transform: what is stated takes its place; without it, nibabel's own guess is ours.
for number, codes in enumerate(("RAS", "PIR", None)):
    name, shape = f"bare{number}", (20, 22, 24)
    image = nib.Nifti1Image(random.integers(0, 900, shape).astype(np.int16), None)
    image.header.set_zooms((2.2, 1.3, 3.1))
    nib.save(image, os.path.join(folder, f"{name}.nii"))
    again = nib.load(os.path.join(folder, f"{name}.nii"))
    affine = again.affine if codes is None else stated(codes, (2.2, 1.3, 3.1), shape)
    cases.append(dict(file=f"{name}.nii", reference=reference(name, again.get_fdata(), affine), orientation=codes))

print(json.dumps(cases))
