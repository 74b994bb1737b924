"""Which network NCCL took, by its log: NCCL falls back to sockets without an error."""

import pytest

from smoke_tests.machine import nccl_log

INFINIBAND = """\
gpu01:4711:4800 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so. Using internal network plugin.
gpu01:4711:4800 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.1<0>
gpu01:4711:4800 [0] NCCL INFO Using network IB
gpu01:4711:4800 [0] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0/GDRDMA
gpu01:4711:4800 [0] NCCL INFO Channel 01/0 : 0[0] -> 15[7] [send] via NET/IB/1
gpu01:4711:4800 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/IPC/read
"""
SOCKET = """\
gpu01:4711:4800 [0] NCCL INFO NET/IB : No device found.
gpu01:4711:4800 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>
gpu01:4711:4800 [0] NCCL INFO Using non-device net plugin version 0
gpu01:4711:4800 [0] NCCL INFO Using network Socket
gpu01:4711:4800 [0] NCCL INFO Channel 00/0 : 1[0] -> 0[0] [receive] via NET/Socket/0
"""
EFA = """\
ip-10-0-0-1:51:60 [0] NCCL INFO NET/OFI Selected provider is efa, fabric is efa (found 4 nics)
ip-10-0-0-1:51:60 [0] NCCL INFO Using network AWS Libfabric
ip-10-0-0-1:51:60 [0] NCCL INFO Channel 00/0 : 8[0] -> 0[0] [send] via NET/AWS Libfabric/0/GDRDMA
"""


@pytest.mark.parametrize(
    ("log", "names", "direct", "words"),
    [
        (INFINIBAND, ["IB"], 1, "NET/IB, 1 of 2 links with GPUDirect RDMA"),
        (SOCKET, ["Socket"], 0, "NET/Socket, 0 of 1 links with GPUDirect RDMA"),
        (EFA, ["AWS Libfabric"], 1, "NET/AWS Libfabric, 1 of 1 links with GPUDirect RDMA"),
        ("gpu01:1:1 [0] NCCL INFO Using network IB\n", ["IB"], 0, "NET/IB"),
        ("", [], 0, "no network named"),
    ],
)
def test_network(log: str, names: list[str], direct: int, words: str) -> None:
    found = nccl_log.parse(log)
    assert (found.names, found.gpu_direct, str(found)) == (names, direct, words)


def test_sockets_in_place_of_what_was_promised() -> None:
    found = nccl_log.parse(SOCKET)
    assert nccl_log.problem(found, "", []) == ""
    assert nccl_log.problem(found, "Socket", []) == ""
    said = nccl_log.problem(found, "IB", ["mlx5_0"])
    assert said.startswith("expected NCCL over NET/IB, found NET/Socket (NET/IB : No device found.); the kernel lists mlx5_0; ")
    assert "lists no device in /sys/class/infiniband" in nccl_log.problem(found, "AWS Libfabric", [])


def test_one_link_over_sockets_is_enough_to_fail() -> None:
    mixed = nccl_log.parse(INFINIBAND + SOCKET.splitlines(keepends=True)[-1])
    assert nccl_log.problem(mixed, "IB", []).startswith("expected NCCL over NET/IB, found NET/IB, NET/Socket")


def test_log_that_says_nothing_is_no_proof() -> None:
    assert "found no network in NCCL's log" in nccl_log.problem(nccl_log.parse("nothing"), "IB", [])
    assert nccl_log.problem(nccl_log.parse(INFINIBAND), "IB", []) == ""
