"""Images to classify: pictures and arrays in every arrangement, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gradlab.training.files import FileProblem
from gradlab.training.images import read_images


def facts(channels: int = 1) -> dict[str, Any]:
    return {"data": {"name": "tiny", "classes": ["a", "b"], "mean": [0.5] * channels,
                     "std": [0.25] * channels, "image_shape": [channels, 4, 6]}}  # fmt: skip


def pixels(channels: int, number: int = 3) -> NDArray[np.uint8]:
    """``(N, C, H, W)``."""
    return np.random.default_rng(0).integers(0, 256, (number, channels, 4, 6), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("ending", ["npy", "npz", "named.npz"])
def test_arrays_in_every_arrangement(
    channels: int, last: bool, ending: str, tmp_path: Path
) -> None:
    wanted = pixels(channels)
    array = wanted.transpose(0, 2, 3, 1) if last else wanted
    path = tmp_path / f"a.{ending}"
    if ending == "npy":
        np.save(path, array)
    elif ending == "npz":
        np.savez(path, array)
    else:
        np.savez(path, labels=np.zeros(3), images=array)
    found = read_images([path], facts(channels))
    assert torch.equal(found.data.images, torch.from_numpy(wanted))
    assert found.indices == [0, 1, 2]
    assert found.data.batch().shape == (3, channels, 4, 6)


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 6), (1, 4, 6), (4, 6, 1)])
def test_grey_images_need_no_channel(shape: tuple[int, ...], tmp_path: Path) -> None:
    wanted = pixels(1, 3 if shape[0] == 3 else 1)
    np.save(tmp_path / "a.npy", wanted.reshape(shape))
    found = read_images([tmp_path / "a.npy"], facts())
    assert torch.equal(found.data.images, torch.from_numpy(wanted))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_pictures_of_every_kind_become_grey_or_colour(
    channels: int, mode: str, tmp_path: Path
) -> None:
    picture = Image.fromarray(pixels(3, 1)[0].transpose(1, 2, 0)).convert(mode)
    path = tmp_path / "a.png"
    picture.save(path)
    found = read_images([path, path], facts(channels))
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    expected = expected.reshape(1, 4, 6, channels).transpose(0, 3, 1, 2)
    assert torch.equal(found.data.images[:1], torch.from_numpy(expected.copy()))
    assert found.sources == [str(path), str(path)]
    assert found.indices == [0, 0]


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    Image.fromarray(pixels(1, 1)[0, 0]).save(tmp_path / "a.jpg")
    assert len(read_images([tmp_path / "a.jpg"], facts()).data) == 1


REFUSED: dict[str, tuple[str, Any, str]] = {
    "floats": ("a.npy", pixels(1) / 255.0, "are float64: give bytes .uint8. from 0 to 255"),
    "another size": ("a.npy", pixels(1)[..., :3], r"have shape \(3, 1, 4, 3\), and the network"),
    "colour for grey": ("a.npy", pixels(3), r"have shape \(3, 3, 4, 6\)"),
    "no images": ("a.npy", pixels(1)[:0], r"have shape \(0, 1, 4, 6\)"),
    "objects": ("a.npy", np.array([{}], dtype=object), "pickles are not read"),
    "unnamed arrays": ("a.npz", {"x": pixels(1), "y": pixels(1)}, "holds the arrays x, y: name"),
    "objects in a zip": ("a.npz", {"images": np.array([{}], dtype=object)}, "pickles are not read"),
    "no array": ("a.npy", b"hello", "is no readable array"),
    "no archive": ("a.npz", b"PK\x03\x04hello", "is no readable array"),
    "no picture": ("a.png", b"hello", "is no picture that can be read .unknown format"),
    "half a picture": ("a.png", None, "is no picture that can be read"),
    "a large picture": ("a.png", Image.new("L", (8, 8)), "has 8 × 8 pixels, .* takes 4 × 6"),
}


@pytest.mark.parametrize("mistake", sorted(REFUSED))
def test_what_is_no_image_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    name, content, words = REFUSED[mistake]
    path = tmp_path / name
    if mistake == "half a picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)).save(
            path
        )
        path.write_bytes(path.read_bytes()[:60])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, Image.Image):
        content.save(path)
    else:
        np.save(path, content)
    with pytest.raises(FileProblem, match=words) as caught:
        read_images([path], facts())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="does not exist"):
        read_images([tmp_path / "none.png"], facts())
    with pytest.raises(FileProblem, match="is a folder"):
        read_images([tmp_path], facts())


def test_weights_must_say_what_they_take(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="do not say what images they were trained on"):
        read_images([tmp_path / "a.png"], {"data": {"name": "tiny"}})
