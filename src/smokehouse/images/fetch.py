"""Open an image to verify it: from a layout, an engine or a registry."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.oci import layout as oci
from smokehouse.oci.layout import Image, Layout
from smokehouse.oci.reference import Reference
from smokehouse.oci.registry import Registry
from smokehouse.programs import docker as engine
from smokehouse.storage import exclusive, files


@contextmanager
def open_image(checkout: Checkout, text: str) -> Iterator[tuple[Image, Registry | None]]:
    """Yield the image `text`, oci:DIR, docker:NAME or a reference, and its registry, from which it is downloaded.

    Raises UserError.
    """
    kind, _, rest = text.partition(":")
    if kind == "oci":
        yield Layout(Path(rest)).only_image(), None
        return
    if kind == "docker":
        with tempfile.TemporaryDirectory(dir=work_folder(checkout)) as folder:
            archive = Path(folder, "image.tar")
            engine.save(rest, archive)
            layout = oci.unpack_layout(archive, Path(folder, "layout"))
            archive.unlink()
            yield layout.only_image(), None
        return
    reference = Reference.parse(text)
    registry = Registry(reference)
    # Kept until it is verified, so that an interrupted download can resume.
    downloaded = work_folder(checkout) / files.sha256(text)[:16]
    with exclusive(downloaded.with_name(f".{downloaded.name}.lock"), f"verifying {text}"):
        layout = Layout(downloaded)
        manifest = registry.pull(layout, only=True)
        if not reference.digest:
            status(f"resolved {text} to {reference.name}@{manifest.digest}")
        yield layout.image(), registry
        shutil.rmtree(downloaded, ignore_errors=True)


def work_folder(checkout: Checkout) -> Path:
    """Return the folder for images that are being verified."""
    folder = checkout.build / "verify"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
