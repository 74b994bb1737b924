"""The recorder of collectives: what a rank entered can be read from outside, and says which collective a hang is in."""

import json
from pathlib import Path

from smoke_tests.ranks import recorder
from smoke_tests.ranks.recorder import Entry

from .conftest import Starter

WORLD = "the default group"


def entry(number: int, kind: str = "all_reduce", tensor: str = "float32[4]", state: str = "l", group: str = WORLD) -> Entry:
    """Return what a rank of a world of three entered."""
    return Entry(state, number, group, (0, 1, 2), kind, tensor)


# what is said of a hang


def test_collective_that_one_rank_has_not_reached() -> None:
    before = entry(7, "broadcast", "bfloat16[2, 3]")
    waits = entry(8, state="w")
    assert recorder.explain({0: [before, waits], 1: [before], 2: [before, waits]}) == (
        "all_reduce of float32[4], number 8 of the default group: arrived ranks 0, 2; not arrived rank 1 "
        "(last: number 7, broadcast of bfloat16[2, 3])"
    )


def test_rank_that_entered_no_collective() -> None:
    assert recorder.explain({0: [entry(1, state="w")], 1: [], 2: [entry(1, state="w")]}) == (
        "all_reduce of float32[4], number 1 of the default group: arrived ranks 0, 2; not arrived rank 1"
    )


def test_first_collective_in_which_ranks_differ() -> None:
    """As after one that a rank skipped; what follows differs, too."""
    first = [entry(4), entry(5, "barrier", ""), entry(6, state="w")]
    second = [entry(4), entry(5), entry(6, "broadcast", state="w")]
    assert recorder.explain({0: first, 1: second}) == (
        "ranks run different collectives: as number 5 of the default group rank 0 entered barrier, "
        "rank 1 entered all_reduce of float32[4]"
    )


def test_sizes_count_only_where_they_must_be_equal() -> None:
    def ranks(kind: str) -> dict[int, list[Entry]]:
        return {rank: [entry(1, kind, f"float32[{rank}]", "w")] for rank in (0, 1)}

    assert recorder.explain(ranks("all_gather_into_tensor")).startswith("ranks run different collectives")
    assert recorder.explain(ranks("all_gather")).startswith("all_gather of float32[")


def test_collective_that_all_ranks_reached() -> None:
    ranks = {rank: [entry(8), entry(9, state=state)] for rank, state in enumerate("wqw")}
    assert recorder.explain(ranks) == (
        "all_reduce of float32[4], number 9 of the default group: arrived ranks 0, 1, 2; not arrived none"
    )


def test_hang_outside_of_collectives() -> None:
    assert recorder.explain({rank: [entry(3)] for rank in range(3)}) == (
        "no collective is pending; the last was all_reduce of float32[4], number 3 of the default group"
    )
    assert recorder.explain({0: [], 1: []}) == ""


def test_group_that_waits_is_named_before_one_that_is_behind() -> None:
    other = "group 7"
    first = [entry(1), entry(1, state="w", group=other)]
    assert recorder.explain({0: first, 1: [], 2: first}).startswith("all_reduce of float32[4], number 1 of group 7: arrived")


def test_only_members_of_a_group_are_expected() -> None:
    pair = Entry("w", 1, "group 3", (0, 2), "all_reduce", "float32[4]")
    said = recorder.explain({0: [pair], 1: [], 2: []})
    assert said == "all_reduce of float32[4], number 1 of group 3: arrived rank 0; not arrived rank 2"


# the file


def test_file_that_is_damaged_or_missing(tmp_path: Path) -> None:
    file = tmp_path / "rank"
    file.write_bytes(b"\x00\xff" * 700 + b"\nw\t2\tgroup 1\t0,1\tbroadcast\tint64[1]   \nw\tx\ty\n")
    assert recorder.read(file) == [Entry("w", 2, "group 1", (0, 1), "broadcast", "int64[1]")]
    assert recorder.read(tmp_path / "none") == []


RECORDED = """
import json, pathlib, sys
import torch, torch.distributed as dist
from smoke_tests.ranks import recorder

file = pathlib.Path(sys.argv[1])
recorder.Recorder(file).install()
dist.init_process_group("gloo", init_method=f"file://{file}-store", rank=0, world_size=1)
said, ones = [], torch.ones(2, 3)
for call in (
    lambda: dist.all_reduce(ones),
    lambda: dist.broadcast(ones, 0),
    lambda: dist.reduce(ones, 0),
    lambda: dist.all_gather_into_tensor(torch.empty(2, 3), ones),
    lambda: dist.all_gather([torch.empty(2, 3)], ones),
    lambda: dist.reduce_scatter_tensor(torch.empty(2, 3), ones),
    lambda: dist.scatter(torch.empty(2, 3), [ones]),
    lambda: dist.gather(ones, [torch.empty(2, 3)]),
    lambda: dist.barrier(),
):
    call()
    said.append(str(recorder.read(file)[-1]))
work = dist.all_reduce(ones.to(torch.bfloat16), async_op=True)
states = [recorder.read(file)[-1].state]
work.wait()
states.append(recorder.read(file)[-1].state)
other = dist.new_group([0])
for _ in range(100):
    dist.all_reduce(ones, group=other)
last = recorder.read(file)
print(json.dumps([said, states, len(last), last[-1].group, [entry.number for entry in last]]))
dist.destroy_process_group()  # gloo's threads may abort a process that ends under them
"""


def test_collectives_of_torch_are_recorded(lasting: Starter, latest: Starter, tmp_path: Path) -> None:
    """In every supported torch's own words, whoever calls them; the file keeps the last ones."""
    for number, starter in enumerate((lasting, latest)):
        said, states, count, group, numbers = json.loads(
            starter.inside("-c", RECORDED, str(tmp_path / str(number))).splitlines()[-1]
        )
        tensor = "of float32[2, 3]"
        assert said == [
            *(f"{kind} {tensor}" for kind in ("all_reduce", "broadcast", "reduce", "all_gather_into_tensor", "all_gather")),
            *(f"{kind} {tensor}" for kind in ("reduce_scatter_tensor", "scatter", "gather")),
            "barrier",
        ]
        assert states == ["q", "l"]
        assert (count, group.startswith("group ")) == (recorder.SLOTS, True)
        assert numbers[-1] - numbers[0] == recorder.SLOTS - 1
