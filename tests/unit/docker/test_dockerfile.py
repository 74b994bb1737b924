"""docker/Dockerfile is what docker/Dockerfile.in gives, with as many layer slots as the plan of an image may fill."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError
from smokehouse.images import dockerfile
from smokehouse.images.plan import plan_layers
from smokehouse.locks import LockedFile, model


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A checkout with nothing but the Dockerfile and its template."""
    (tmp_path / "docker").mkdir()
    for name in ("Dockerfile", "Dockerfile.in"):
        shutil.copy(root / "docker" / name, tmp_path / "docker" / name)
    return tmp_path


def test_the_committed_dockerfile_is_generated_from_its_template(root: Path) -> None:
    folder = root / "docker"
    expected = dockerfile.render((folder / "Dockerfile.in").read_text("utf-8"))
    assert (folder / "Dockerfile").read_text("utf-8") == expected, "out of date; run nox -s build -- NAME --prepare"


def test_every_slot_has_its_stages_on_those_of_the_slot_below(root: Path) -> None:
    text = (root / "docker" / "Dockerfile").read_text("utf-8")
    numbers = [f"{number:02}" for number in range(dockerfile.SLOTS + 1)]
    assert re.findall(r"^FROM prefix AS unpack-(\d+)$", text, re.MULTILINE) == numbers[1:]
    assert re.findall(r"--mount=type=bind,from=layer-(\d+),target=/in ", text) == numbers[1:]
    assert re.findall(r"^COPY --link --from=unpack-(\d+) /out/ /$", text, re.MULTILINE) == numbers[1:]
    above = re.findall(r"^FROM upto-(\d+) AS upto-(\d+)$", text, re.MULTILINE)
    assert above == [*pairwise(numbers)]
    assert not re.search(r"@[A-Z]+@|(BEGIN|END) SLOT", text)


@pytest.mark.parametrize("slots", [0, 1, 17])
def test_slots_are_what_differs_between_dockerfiles(root: Path, slots: int) -> None:
    template = (root / "docker" / "Dockerfile.in").read_text("utf-8")
    text = dockerfile.render(template, slots)
    assert len(re.findall(r" AS upto-[0-9]", text)) == slots + 1
    without = re.compile(r"^FROM prefix AS unpack-\d.*?(?=^FROM upto-\$)", re.MULTILINE | re.DOTALL)
    assert without.sub("", text) == dockerfile.render(template, 0)


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [("# BEGIN SLOT", "# begin", 0), ("# END SLOT", "# end", 0), ("# END SLOT\n", "# END SLOT\n# BEGIN SLOT\n# END SLOT\n", 2)],
)
def test_a_template_without_exactly_one_part_to_repeat_is_refused(root: Path, old: str, new: str, found: int) -> None:
    template = (root / "docker" / "Dockerfile.in").read_text("utf-8").replace(old, new)
    with pytest.raises(UserError, match=f"Dockerfile.in: expected one part from # BEGIN SLOT to # END SLOT, found {found}; "):
        dockerfile.render(template)


def test_an_edited_template_gives_a_new_dockerfile(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = copy / "docker" / "Dockerfile.in"
    template.write_text(template.read_text("utf-8") + "LABEL edited=yes\n")
    dockerfile.update(Checkout(copy))
    assert (copy / "docker" / "Dockerfile").read_text("utf-8").endswith('CMD ["describe"]\nLABEL edited=yes\n')
    assert capsys.readouterr().err == "smokehouse: docker/Dockerfile: was out of date, generated from docker/Dockerfile.in\n"


def test_a_dockerfile_that_is_up_to_date_is_left_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "docker" / "Dockerfile").stat()
    dockerfile.update(Checkout(copy))
    after = (copy / "docker" / "Dockerfile").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert capsys.readouterr().err == ""


def test_a_checkout_without_the_template_is_refused(copy: Path) -> None:
    (copy / "docker" / "Dockerfile.in").unlink()
    with pytest.raises(
        UserError, match=r"docker/Dockerfile\.in: not found; restore it with git checkout docker/Dockerfile\.in"
    ):
        dockerfile.update(Checkout(copy))


def test_more_layers_than_slots_are_refused(root: Path) -> None:
    """Each added wheel is a layer by itself."""
    locked = model.read(root / "lockfiles" / "qwen2.5-vl" / "lock.json", "lock.json", "")
    free = dockerfile.SLOTS - len(plan_layers(locked).numbered)
    added = [
        LockedFile(name=f"n{i}", version="1", file=f"n{i}-1-py3-none-any.whl", size=1, sha256="0" * 64) for i in range(free + 1)
    ]
    assert len(plan_layers(locked, added[:free]).numbered) == dockerfile.SLOTS
    with pytest.raises(UserError, match=r"qwen2\.5-vl: expected at most 16 layers of wheels, found 17; raise SLOTS in"):
        plan_layers(locked, added)
