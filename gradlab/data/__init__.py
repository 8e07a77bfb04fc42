"""Image sets: checksummed download, readers, splits, and augmentation on the device.

``load`` reads a whole split, as bytes, onto a device; every file's checksum is verified first.
``fetch`` downloads what is missing. A ``Dataset`` cuts normalized batches, an ``Augmentation``
crops, flips, cuts out and mixes them.

>>> names()
['cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'uc_merced']
>>> Augmentation(crop=4, flip=True)
Augmentation(crop=4, flip=True, cutout=0, mixup=0.0, padding='zero')
"""

from __future__ import annotations

from gradlab.data.augmentation import Augmentation
from gradlab.data.dataset import Dataset
from gradlab.data.fetching import FileState, check, fetch, splits_here
from gradlab.data.files import DataError, data_root
from gradlab.data.loading import load
from gradlab.data.sets import ImageSet, find, names

__all__ = [
    "Augmentation",
    "DataError",
    "Dataset",
    "FileState",
    "ImageSet",
    "check",
    "data_root",
    "fetch",
    "find",
    "load",
    "names",
    "splits_here",
]
