"""Makes three more small scans for `calibration/` from the demo's brain, as other scanners might have given it: other
voxels, axes, contrasts, a bias field, noise. Needs nibabel and numpy: python make_calibration.py
"""
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

HERE = Path(__file__).parent


def averaged(data, factors):
    """Means over blocks of voxels; what does not fill a block is cut off."""
    n = [s // f for s, f in zip(data.shape, factors)]
    data = data[tuple(slice(0, m * f) for m, f in zip(n, factors))]
    return data.reshape(n[0], factors[0], n[1], factors[1], n[2], factors[2]).mean((1, 3, 5))


def shrunk(affine, factors):
    """The affine of the averaged voxels: their centres lie between the old ones."""
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] * factors
    new[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    return new


def main():
    brain = nib.load(HERE / "mni152_t1.nii.gz")
    data, rng = brain.get_fdata(), np.random.default_rng(0)
    data = data / data.max()
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in data.shape), indexing="ij")
    variants = {
        "another_contrast": (data ** 0.6 + rng.normal(0, 0.02, data.shape) * (data > 0), (4, 4, 4)),
        "bias_field": (data * (1 + 0.35 * x + 0.2 * y * z), (4, 4, 5)),
        "noise": (data ** 1.4 + np.abs(rng.normal(0, 0.05, data.shape)), (4, 5, 4)),
    }
    for name, (values, factors) in variants.items():
        values, affine = averaged(values, factors), shrunk(brain.affine, factors)
        values = np.round(np.clip(values / values.max(), 0, 1) * 250).astype(np.uint8)
        image = nib.Nifti1Image(values, affine)
        if name == "bias_field":  # stored with the first axis to the left
            image = image.as_reoriented(nib.orientations.axcodes2ornt("LAS", (("L", "R"), ("P", "A"), ("I", "S"))))
        with open(HERE / "calibration" / f"{name}.nii.gz", "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
                packed.write(image.to_bytes())


if __name__ == "__main__":
    main()
