"""A scan's file to a float32 tensor of 256 x 256 x 256 voxels of 1 mm, 0 to 1: python scan.py nibabel|monai FILE

Both trilinear, 0 outside the scan. The work alone is timed, without the imports.
"""
import sys
import time

import numpy as np

from common import report


def nibabel():
    import nibabel as nib
    from nibabel.processing import conform

    def read(path):
        image = nib.load(path)
        # As float64: nibabel would round an integer scan's values.
        image = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float64), image.affine)
        image = conform(image, out_shape=(256,) * 3, voxel_size=(1, 1, 1), order=1, cval=0.0, orientation="RAS")
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        least, most = voxels.min(), voxels.max()
        return (voxels - least) / (most - least)

    return read


def monai(size=256, voxel_mm=1):
    from monai import transforms as t

    return t.Compose([
        t.LoadImage(reader="NibabelReader", image_only=True),
        t.EnsureChannelFirst(),
        t.Orientation(axcodes="RAS"),
        t.Spacing(pixdim=(voxel_mm,) * 3, mode="bilinear", padding_mode="zeros"),
        t.ResizeWithPadOrCrop((size,) * 3),
        t.ScaleIntensity(),
    ])


def main():
    read = {"nibabel": nibabel, "monai": monai}[sys.argv[1]]()
    start = time.perf_counter()
    voxels = read(sys.argv[2])
    seconds = time.perf_counter() - start
    assert voxels.shape[-3:] == (256,) * 3, voxels.shape
    report(seconds)


if __name__ == "__main__":
    main()
