"""Test reading headers and indexes without torch: every tensor is found, nothing raises a traceback, nothing takes for ever."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smokehouse_loader import Finding, inspect_checkpoint
from smokehouse_loader.safetensors_header import MOST_VALUES, SIZES, BadFileError, read

# Seconds of processor time and bytes of memory for any file; an idle core takes a tenth of the time.
SECONDS, MEMORY = 40, 2 * 2**30

settings.register_profile("headers", deadline=None, max_examples=150, derandomize=True, database=None)
settings.load_profile("headers")


def written(path: Path, header: bytes, size: int = 0) -> Path:
    """Write a safetensors file with that header and `size` bytes of (sparse) tensors."""
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return path


Tensors = dict[str, tuple[str, list[int]]]
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable())
TENSORS: st.SearchStrategy[Tensors] = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 4), max_size=4)), max_size=6
)


def header_of(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """Return the header of tensors that lie back to back, and their size."""
    header: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for number in shape:
            size *= number
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header, at


@given(TENSORS, st.integers(0, 3))
def test_every_tensor_is_found(tensors: Tensors, spaces: int) -> None:
    header, size = header_of(tensors)
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(header).encode() + b" " * spaces
        found = read(written(Path(folder, "x.safetensors"), text, size))
    assert {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in found} == tensors
    starts = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
    assert {tensor.name: tensor.start for tensor in found} == starts


@given(TENSORS.filter(bool), st.data())
def test_damage_is_reported(tensors: Tensors, data: st.DataObject) -> None:
    """A header in which a value is something else is refused, with one line that a terminal shows."""
    header, size = header_of(tensors)
    entry = header[data.draw(st.sampled_from(sorted(header)))]
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    odd = (
        st.none()
        | st.booleans()
        | st.floats()
        | st.text(max_size=3)
        | st.integers(-(10**30), -1)
        | st.integers(2**62, 10**4000)
    )
    entry[key] = data.draw(odd | st.lists(odd, min_size=1, max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder, "x.safetensors"), json.dumps(header).encode(), size)
        with pytest.raises(BadFileError) as refused:
            read(file)
    line = str(Finding(refused.value.failure, "file", str(refused.value), "do"))
    assert line.isprintable()
    assert len(line) < 2000


@given(st.binary(max_size=300), st.binary(max_size=40), st.booleans())
def test_arbitrary_bytes_raise_nothing_else(content: bytes, rest: bytes, framed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        file.write_bytes((len(content).to_bytes(8, "little") if framed else b"") + content + rest)
        for problem in inspect_checkpoint(folder).problems:
            assert str(problem).isprintable()


@given(st.binary(max_size=300))
def test_arbitrary_index_raises_nothing(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.safetensors.index.json").write_bytes(content)
        assert inspect_checkpoint(folder).problems


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":NaN}}',
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[4611686018427387904,4611686018427387904,0],"data_offsets":[0,0]}}',
        b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'\xef\xbb\xbf{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.encode("utf-16"),
    ],
    ids=["NaN", "key twice", "overflow", "half a surrogate", "byte-order mark", "UTF-16"],
)
def test_what_safetensors_refuses_too(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(BadFileError) as refused:
        read(written(tmp_path / "x.safetensors", header))
    assert refused.value.failure == "broken-header"


def test_zero_before_huge_dimensions_is_empty(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"U8","shape":[0,4611686018427387904,4611686018427387904],"data_offsets":[0,0]}}'
    assert read(written(tmp_path / "x.safetensors", header))[0].elements == 0


def test_tensor_twice_is_refused(tmp_path: Path) -> None:
    """Though safetensors reads the last: which of the two was meant nobody knows."""
    entry = b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    with pytest.raises(BadFileError, match="twice"):
        read(written(tmp_path / "x.safetensors", b"{" + entry + b"," + entry + b"}"))


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    name = "\x1b[2J\x07evil\u202e"
    written(tmp_path / "model.safetensors", json.dumps({name: {"dtype": "U8"}}).encode())
    [problem] = inspect_checkpoint(tmp_path).problems
    assert str(problem).isprintable()
    assert "evil" in str(problem)


# Time and memory


def tensors_of_99_mb() -> Iterator[bytes]:
    yield b"{"
    for number in range(1_100_000):
        yield b"%s" % (b"," if number else b"")
        yield b'"model.layers.%d.w":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (number, number, number + 1)
    yield b"}"


def tensors_within_the_limit() -> Iterator[bytes]:
    count = MOST_VALUES // 7 - 10
    yield b"{"
    for number in range(count):
        yield b"," if number else b""
        yield b'"%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (number, number, number + 1)
    yield b"}"


def one_tensor(shape: bytes) -> bytes:
    return b'{"a":{"dtype":"U8","shape":[' + shape + b'],"data_offsets":[0,1]}}'


HOSTILE: dict[str, Callable[[], bytes]] = {
    "99 MB of tensors": lambda: b"".join(tensors_of_99_mb()),
    "as many tensors as are allowed": lambda: b"".join(tensors_within_the_limit()),
    "the last of many names twice": lambda: b"".join(tensors_within_the_limit())[:-1] + b',"0":{},"0":{}}',
    "many huge dimensions": lambda: one_tensor(b",".join([b"9223372036854775806"] * (MOST_VALUES - 9))),
    "more huge dimensions": lambda: one_tensor(b",".join([b"9223372036854775806"] * 4_900_000)),
    "dimensions of many digits": lambda: one_tensor(b",".join([b"9" * 4299] * 22_000)),
    "one dimension of 90 million digits": lambda: one_tensor(b"9" * 90_000_000),
    "many empty lists": lambda: b'{"__metadata__":[' + b",".join([b"[]"] * 30_000_000) + b"]}",
    "deep lists": lambda: b"[" * 99_000_000,
    "one long name": lambda: b'{"' + b"a" * 99_000_000 + b'":{}}',
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_header_of_any_size_is_read_in_bounded_time(root: Path, tmp_path: Path, kind: str) -> None:
    header = HOSTILE[kind]()
    assert len(header) <= 100_000_000
    written(tmp_path / "model.safetensors", header, MOST_VALUES // 7 - 10 if "allowed" in kind else 1)
    program = (
        "import resource; "
        f"resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS})); "
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY})); "
        "from smokehouse_loader import inspect_checkpoint; found = inspect_checkpoint('.'); "
        "print(len(found.tensors)); print(*map(str, found.problems))"
    )
    environ = os.environ | {"PYTHONPATH": str(root / "src")}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    count, problems = ended.stdout.split("\n", 1)
    if "allowed" in kind:
        assert (int(count), problems.strip()) == (MOST_VALUES // 7 - 10, "")
    else:
        assert "[broken-header]" in problems
        assert len(problems) < 2000


# What from_pretrained itself reads


def indexed(folder: Path, index: str | bytes, *shards: str) -> Path:
    """Write an index and shards of one tensor each, of the shard's name."""
    folder.mkdir(exist_ok=True)
    for name in shards:
        header, size = header_of({name.partition(".")[0]: ("F32", [2])})
        written(folder / name, json.dumps(header).encode(), size)
    data = index if isinstance(index, bytes) else index.encode()
    (folder / "model.safetensors.index.json").write_bytes(data)
    return folder


def test_last_of_two_entries_in_an_index_counts(tmp_path: Path) -> None:
    """As in Python's dictionaries, from which from_pretrained takes the shards."""
    index = '{"metadata": {}, "weight_map": {"a": "gone.safetensors", "a": "a.safetensors"}}'
    assert inspect_checkpoint(indexed(tmp_path / "one", index, "a.safetensors")).problems == ()
    index = '{"metadata": {}, "weight_map": {"a": "a.safetensors", "a": "gone.safetensors"}}'
    failures = {problem.failure for problem in inspect_checkpoint(indexed(tmp_path / "two", index, "a.safetensors")).problems}
    assert "missing-shard" in failures


@pytest.mark.parametrize("metadata", ["", '"metadata": null, ', '"metadata": [], '])
def test_index_without_metadata_is_refused(tmp_path: Path, metadata: str) -> None:
    """from_pretrained adds to it: KeyError: 'metadata'."""
    index = f'{{{metadata}"weight_map": {{"a": "a.safetensors"}}}}'
    [problem] = inspect_checkpoint(indexed(tmp_path, index, "a.safetensors")).problems
    assert (problem.failure, problem.cure) == ("inconsistent-index", 'add "metadata": {} to it')


def test_weights_of_a_variant_alone(tmp_path: Path) -> None:
    header, size = header_of({"a": ("F32", [2])})
    written(tmp_path / "model.fp16.safetensors", json.dumps(header).encode(), size)
    [problem] = inspect_checkpoint(tmp_path).problems
    assert problem.what == "has weights of the variant fp16 only"
    assert problem.cure == "pass variant='fp16', to check as --variant fp16"
    found = inspect_checkpoint(tmp_path, variant="fp16")
    assert (found.problems, list(found.tensors)) == ((), ["a"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_index_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    index = '{"metadata": {}, "weight_map": {"a": "a.safetensors"}}'
    assert inspect_checkpoint(indexed(tmp_path / "plain", index, "a.safetensors")).problems == ()
    [problem] = inspect_checkpoint(indexed(tmp_path / "other", index.encode(encoding), "a.safetensors")).problems
    assert problem.failure == "inconsistent-index"


def test_shard_that_links_outside_is_read(tmp_path: Path) -> None:
    outside = indexed(tmp_path / "outside", "{}", "a.safetensors")
    folder = indexed(tmp_path / "folder", '{"metadata": {}, "weight_map": {"a": "a.safetensors"}}')
    (folder / "a.safetensors").symlink_to(outside / "a.safetensors")
    found = inspect_checkpoint(folder)
    assert (found.problems, list(found.tensors)) == ((), ["a"])
    (folder / "a.safetensors").unlink()
    (folder / "a.safetensors").symlink_to("/dev/zero")
    [problem] = inspect_checkpoint(folder).problems
    assert problem.failure == "missing-shard"


def test_index_of_too_many_shards_is_one_problem(tmp_path: Path) -> None:
    names = {str(number): f"{number}.safetensors" for number in range(30_000)}
    [problem] = inspect_checkpoint(indexed(tmp_path, json.dumps({"metadata": {}, "weight_map": names}))).problems
    assert "found 30000" in problem.what
    names = {str(number): f"{number}.safetensors" for number in range(9_000)}
    problems = inspect_checkpoint(indexed(tmp_path, json.dumps({"metadata": {}, "weight_map": names}))).problems
    assert len(problems) < 200


@pytest.mark.parametrize(
    ("files", "what", "fix"),
    [
        (("model.safetensors.incomplete",), "downloads that did not end", "run the download again"),
        ((".cache/huggingface/download/x.y.incomplete",), "downloads that did not end", "run the download again"),
        (("pytorch_model_fsdp_0/__0_0.distcp",), "sharded state of FSDP", "accelerate merge-weights"),
        (("latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"), "Megatron", "convert it"),
        (("snapshots/1c0ffee/model.safetensors", "refs/main"), "a directory with 1 of them", "snapshots/1c0ffee"),
        (("checkpoint-90/model.safetensors", "checkpoint-100/model.safetensors"), "with 2 of them", "checkpoint-100"),
        (("notes/readme.txt",), "no weights that from_pretrained reads", "download or copy the weights"),
    ],
    ids=["browser", "hub", "fsdp", "megatron", "cache", "parent", "nothing"],
)
def test_directory_of_another_kind_is_named(tmp_path: Path, files: tuple[str, ...], what: str, fix: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        written(tmp_path / file, b"{}")
    [problem] = inspect_checkpoint(tmp_path).problems
    assert what in problem.what
    assert fix in problem.cure


def test_file_that_is_still_downloaded_is_refused(tmp_path: Path) -> None:
    """aria2 gives a file its whole size at once: the header may be there, and the weights zeros."""
    header, size = header_of({"a": ("F32", [4])})
    written(tmp_path / "model.safetensors", json.dumps(header).encode(), size)
    assert inspect_checkpoint(tmp_path).problems == ()
    (tmp_path / "model.safetensors.aria2").touch()
    [problem] = inspect_checkpoint(tmp_path).problems
    assert problem.failure == "truncated-shard"
