"""A synthetic set made elsewhere: a folder of images per class, instead of a generator.

    root/golden_retriever/000.png
    root/golden_retriever/001.jpg
    root/tabby cat/a.png

Use it for images of services that fedsim cannot call (DALL-E, Imagen), or of generators too large
for this machine. Folder names are the class names. Underscores read as spaces, and case does not
matter. Folders of other classes are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fedsim.data.images import IMAGE_SUFFIXES, pixels
from fedsim.errors import ModelError, did_you_mean

_MOST_PROBLEMS = 10


def is_image_folder(spec: str) -> bool:
    """Whether `models.generator` names images made elsewhere, not a pipeline that makes them."""
    root = Path(spec).expanduser()
    return root.is_dir() and not (root / "model_index.json").exists() and bool(_folders(root))


class ImageFolder:
    """The first images of every class, in the order of their file names.

    Args:
        root: The folder.
        classnames: The required classes.
        per_class: Number of images used of each class.

    Raises:
        ModelError: Naming the classes that have no folder, two folders, or too few images.
    """

    def __init__(self, root: Path | str, classnames: Sequence[str], per_class: int) -> None:
        self.root, self.per_class = Path(root).expanduser(), per_class
        folders: dict[str, list[Path]] = {}
        for folder in _folders(self.root):
            folders.setdefault(_plain(folder.name), []).append(folder)
        self._files: list[list[Path]] = []
        problems = []
        for name in classnames:
            found = folders.get(_plain(name), [])
            files = [file for folder in found for file in _images(folder)]
            if not found:
                hint = did_you_mean(_plain(name), folders)
                problems.append(f"class {name!r} has no folder; {hint}")
            elif len(found) > 1:
                both = " and ".join(folder.name for folder in found)
                problems.append(f"class {name!r} has {len(found)} folders, {both}: join them")
            elif len(files) < per_class:
                problems.append(f"class {name!r} has {len(files)} of {per_class} images")
            self._files.append(files[:per_class])
        if problems:
            more = len(problems) - _MOST_PROBLEMS
            lines = problems[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
            raise ModelError(
                f"the images in {self.root} do not cover the classes with {per_class} images each "
                "(cache.images_per_class, times synthetic.candidates_per_image where a filter "
                "chooses):\n" + "\n".join(f"  - {line}" for line in lines)
            )

    def image(self, label: int, index: int) -> Image.Image:
        """Image `index` of class `label`, RGB, in its own size.

        Raises:
            DataError: It cannot be read.
        """
        file = self._files[label][index]
        return Image.fromarray(pixels(file.read_bytes(), str(file), None))


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(p for p in files if not p.name.startswith("."))
