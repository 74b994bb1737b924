"""Collectives: NCCL, gloo, rendezvous, and what one rank notices of another."""

from smokehouse_loader.failures.model import MEASURED, Failure, Sign

_WATCHDOG = "Watchdog caught collective operation timeout: WorkNCCL("
_OTHER_RANKS = "compare the SeqNum and OpType of all ranks"

FAILURES = (
    Failure(
        name="mixed-modality",
        cause="The ranks ran different collectives: under ZeRO they diverge if one rank has an image and another only text.",
        cure="give every rank an image: zero pixels with their labels at -100, or add 0 * visual(dummy).sum() in forward",
        source=f"{MEASURED}: gloo crashes, NCCL with ZeRO-3 is reported to hang",
        reproduction="mixed_modality",
        signs=(
            Sign("op.preamble.length <= op.nbytes"),
            Sign("Detected mismatch between collectives on ranks"),
        ),
        excludes=("lost-peer",),
    ),
    Failure(
        name="nccl-timeout",
        cause=(
            "A collective of NCCL did not end in time, because the ranks parted: some ran other collectives, "
            "mostly since a batch of text "
            "alone skips the vision tower that batches with images run (mixed batches), or a branch that depends on data."
        ),
        cure=(
            f"{_OTHER_RANKS}: where they differ, give every rank the same work (a dummy image for batches without one, as "
            "smokehouse_loader.dummy_images does; the same number of steps and of generated tokens)"
        ),
        source="trl issue #3934, ms-swift issue #9104: text-only batches on some ranks",
        only_on_gpu=True,
        signs=(
            Sign(_WATCHDOG),
            Sign("watchdog thread terminated with exception", unless=("CUDA error: || uncorrectable",)),
            Sign("Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels"),
        ),
        may_follow=True,
        apart="SeqNum or OpType differ between ranks, or some ranks never entered the collective",
        question="Do SeqNum and OpType of the last collective agree on all ranks, and did a rank end or raise before?",
    ),
    Failure(
        name="slow-or-dead-rank",
        cause=(
            "A collective of NCCL did not end in time, because a rank had died or was busy elsewhere: evaluating "
            "or saving alone, "
            "preparing data, loading for longer than the timeout, or swapping."
        ),
        cure=(
            "read what the rank without a timeout printed last; let all ranks save and evaluate together, prepare data before "
            "init_process_group, and raise ddp_timeout (init_process_group's timeout) where the work is really that long"
        ),
        source=("LlamaFactory issue #7396; lm-evaluation-harness PR #1404: one rank works for longer than the timeout"),
        only_on_gpu=True,
        signs=(Sign(_WATCHDOG),),
        may_follow=True,
        apart="SeqNum and OpType agree on the ranks that wait, and one rank prints nothing or ended before",
    ),
    Failure(
        name="nccl-peer-to-peer",
        cause=(
            "Direct copies between GPUs fail or never end on this machine: PCIe ACS or an IOMMU is on, or the cards do not "
            "support them."
        ),
        cure="set NCCL_P2P_DISABLE=1 to confirm it, then turn ACS and the IOMMU off in the BIOS",
        source="nccl-tests issue #117, nccl issue #1999: collectives hang with P2P and work without",
        only_on_gpu=True,
        signs=(
            Sign("peer access is not supported between these two devices"),
            Sign("peer mapping resources exhausted"),
            Sign(_WATCHDOG, needs=("SeqNum=1, || SeqNum=2, || SeqNum=0,",)),
            Sign("Using RTX 40{} doesn't support faster communication broadband via P2P or IB"),
        ),
        may_follow=True,
        apart="the first collectives of a run never end, on all ranks alike, and NCCL_P2P_DISABLE=1 helps",
    ),
    Failure(
        name="nccl-heartbeat",
        cause="NCCL's watchdog itself got stuck: a call of CUDA or NCCL hangs, or Python's lock was held for minutes.",
        cure=(
            "read the stack that the monitor dumped; look for a hanging driver (dmesg, Xid) or network, and set "
            "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC higher only where one call is really that long"
        ),
        source="torch's ProcessGroupNCCL.cpp",
        signs=(Sign("ProcessGroupNCCL's watchdog got stuck for"),),
        may_follow=True,
    ),
    Failure(
        name="duplicate-gpu",
        cause=(
            "Two ranks use one GPU, which NCCL before 2.30 refuses: torch.cuda.set_device was not called, or there are too few."
        ),
        cure="call torch.cuda.set_device(LOCAL_RANK) before the first collective, and start one rank per GPU",
        source="nccl issue #418; the text is in NCCL 2.21.5 and 2.27.5",
        only_on_gpu=True,
        signs=(Sign("Duplicate GPU detected : rank {n} and rank {n} both on CUDA device"),),
    ),
    Failure(
        name="nccl-versions-differ",
        cause="The ranks use different versions of NCCL: images differ between nodes, or one finds a system's libnccl first.",
        cure="run the same image everywhere, and remove other libnccl.so.2 from LD_LIBRARY_PATH and LD_PRELOAD",
        source="the text is in NCCL 2.27.5",
        signs=(Sign("Mismatched NCCL version detected : rank {n} version {n} rank {n} version {n}"),),
    ),
    Failure(
        name="nccl-no-interface",
        cause="NCCL found no network interface to start with: NCCL_SOCKET_IFNAME names one that this machine does not have.",
        cure=(
            "unset NCCL_SOCKET_IFNAME, or set it to an interface that ip -br link lists; lo where all ranks are on one machine"
        ),
        source="nccl issue #1120; the text is in NCCL 2.21.5 and 2.27.5",
        only_on_gpu=True,
        signs=(
            Sign("Bootstrap : no socket interface found"),
            Sign("NET/Socket : No usable listening interface found"),
        ),
    ),
    Failure(
        name="nccl-connection",
        cause=(
            "NCCL could not connect to another node: a firewall, different interfaces, or an address that others cannot reach."
        ),
        cure=(
            "set NCCL_SOCKET_IFNAME to the interface that the nodes share (on all of them), open the ports "
            "between nodes, and test with "
            "nccl-tests"
        ),
        source="nccl issues #697 and #1515; NCCL's misc/socket.cc",
        only_on_gpu=True,
        signs=(
            Sign("socketStartConnect: Connect to {} failed : "),
            Sign("socketPollConnect: {} returned", needs=("retries || timeout || exceeded",)),
            Sign("Call to connect returned Connection timed out", needs=("NCCL",)),
            Sign("Call to connect returned No route to host", needs=("NCCL",)),
            Sign(
                "ncclSystemError: System call (e.g. socket, malloc) or external library call failed",
                log=("socketStartConnect || Net : Connect to || connect returned",),
            ),
        ),
        may_follow=True,
    ),
    Failure(
        name="nccl-over-sockets",
        cause=(
            "NCCL uses TCP sockets between nodes and not the fast network: its plugin (EFA) or InfiniBand is not "
            "found in the container."
        ),
        cure=(
            "for EFA install aws-ofi-nccl and pass /dev/infiniband to the container; for InfiniBand install "
            "libibverbs and pass "
            "--device=/dev/infiniband, and unset NCCL_IB_DISABLE; the log should then say NET/IB or NET/OFI"
        ),
        source="nccl issues #229 and #1597: EFA; NCCL's transport/net_ib.cc",
        only_on_gpu=True,
        signs=(
            Sign("NCCL INFO NET/IB : No device found"),
            Sign("NCCL INFO Using network Socket"),
            Sign("NCCL INFO Failed to open libibverbs.so"),
        ),
        harmless=True,
        apart="it works and is slow; on one node it means nothing",
    ),
    Failure(
        name="nccl-infiniband",
        cause=(
            "InfiniBand failed under NCCL: a link went down, memory may not be locked, or the subnet's settings "
            "(GID) are wrong."
        ),
        cure=(
            "set ulimit -l unlimited in the container (--ulimit memlock=-1), check ibstat and NCCL_IB_GID_INDEX, "
            "and exclude bad HCAs (NCCL_IB_HCA)"
        ),
        source="nccl-tests issue #206; NCCL's transport/net_ib.cc",
        only_on_gpu=True,
        signs=(
            Sign("Call to ibv_reg_mr"),
            Sign("Call to ibv_create_qp failed"),
            Sign("Call to ibv_modify_qp failed"),
            Sign("Got completion from peer {} with status="),
            Sign("Got completion from peer {} with error"),
            Sign("NET/IB : Got async event : "),
        ),
        may_follow=True,
    ),
    Failure(
        name="collective-types",
        cause="The tensors of a collective have different dtypes on its two sides, or the ranks passed different sizes.",
        cure="cast them alike on every rank; under ZeRO or FSDP load all weights in one dtype",
        source="torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp",
        signs=(
            Sign("output tensor must have the same type as input tensor"),
            Sign(
                "Tensors must have identical type", needs=("all_reduce || all_gather || reduce_scatter || c10d || distributed",)
            ),
            Sign("output tensor size must be equal to world_size times input tensor size"),
        ),
    ),
    Failure(
        name="gloo-interface",
        cause=(
            "gloo could not find its own host's address or interface: GLOO_SOCKET_IFNAME names another, or the "
            "host's name does not resolve."
        ),
        cure=(
            "set GLOO_SOCKET_IFNAME to an interface that ip -br link lists (lo on one machine), or add the "
            "host's name to /etc/hosts"
        ),
        source="torch's ProcessGroupGloo.cpp",
        signs=(
            Sign("Unable to find address for"),
            Sign("Unable to find interface for: "),
            Sign("Unable to resolve hostname to a (local) address"),
            Sign("gloo/transport/tcp/device.cc:{n}] ifa != nullptr. Unable to find interface for"),
        ),
    ),
    Failure(
        name="gloo-full-mesh",
        cause=(
            "gloo could not connect every rank with every other: they announce addresses that others cannot "
            "reach, such as 127.0.0.1 or a VPN's."
        ),
        cure=(
            "set GLOO_SOCKET_IFNAME to the interface that all nodes share, and check that hostnames do not resolve to 127.0.1.1"
        ),
        source="gloo's context.cc",
        signs=(
            Sign("Gloo connectFullMesh failed with"),
            Sign("Connect timeout [", needs=("gloo",)),
        ),
        may_follow=True,
    ),
    Failure(
        name="gloo-timeout",
        cause="A collective of gloo did not end in time: ranks parted, or one is dead or busy elsewhere.",
        cure=(
            f"{_OTHER_RANKS} where they print them, and give every rank the same work (see mixed-modality); read "
            f"what the silent rank printed last"
        ),
        source="gloo's transport/tcp/unbound_buffer.cc",
        signs=(
            Sign("Timed out waiting {n}ms for recv operation to complete"),
            Sign("Timed out waiting {n}ms for send operation to complete"),
            Sign("failed to pass monitoredBarrier in"),
        ),
        may_follow=True,
    ),
    Failure(
        name="port-in-use",
        cause="The port of the rendezvous is in use: an earlier run still lives, or two jobs share a node and MASTER_PORT.",
        cure="end what is left of the earlier run, or give this one another port (--master_port, --rdzv-endpoint host:0)",
        source="torch's socket.cpp",
        signs=(
            Sign(
                "The server socket has failed to listen on any local network address",
                needs=("EADDRINUSE || address already in use || Address already in use || errno: 98",),
            ),
            Sign("Tried to launch distributed communication on port `"),
            Sign("EADDRINUSE, message: address already in use", needs=("socket || TCPStore || DistNetworkError",)),
            Sign(
                "OSError: [Errno 98] Address already in use",
                needs=("torch/distributed || torchrun || TCPStore || deepspeed || accelerate || rendezvous",),
            ),
        ),
    ),
    Failure(
        name="rendezvous-timeout",
        cause=(
            "Not all ranks joined in time: a node did not start, MASTER_ADDR cannot be reached from it, or WORLD_SIZE is wrong."
        ),
        cure=(
            "check that all nodes run the same number of processes, reach MASTER_ADDR:MASTER_PORT, and start within the timeout"
        ),
        source="torch's TCPStore.cpp",
        signs=(
            Sign("Timed out after {n} seconds waiting for clients. {n}/{n} clients joined"),
            Sign("The client socket has timed out after {} while trying to connect to"),
            Sign("RendezvousTimeoutError"),
            Sign("The connection to the C10d store has failed", needs=("_create_tcp_store",)),
            Sign("The client socket has failed to connect to any network address of"),
            Sign("DistStoreError: Timed out after"),
        ),
        may_follow=True,
    ),
    Failure(
        name="rank-environment-missing",
        cause="A distributed run was started without a launcher: RANK, WORLD_SIZE or MASTER_ADDR are not set.",
        cure="start it with torchrun --nproc-per-node N (or deepspeed, accelerate launch), not with python",
        source="torch/distributed/rendezvous.py",
        signs=(
            Sign("environment variable {w} expected, but not set", needs=("env:// || rendezvous",)),
            Sign("Error initializing torch.distributed using env:// rendezvous"),
            Sign("No module named 'mpi4py'", needs=("mpi_discovery",)),
            Sign("Default process group has not been initialized, please make sure to call init_process_group"),
        ),
    ),
    Failure(
        name="lost-peer",
        cause="Another rank died or raised an error; this one only noticed that the connection was closed.",
        cure="find the first error in the logs of the other ranks",
        source=f"{MEASURED}: under ZeRO-3 an error can occur on one rank only",
        reproduction="dead_rank",
        signs=(
            Sign("Connection closed by peer", needs=("gloo || c10d || TCPStore || nccl || NCCL || distributed",)),
            Sign(
                "Connection reset by peer",
                needs=("gloo || c10d || TCPStore || nccl || NCCL || torch/distributed || ProcessGroup",),
            ),
            Sign("Broken pipe", needs=("gloo || c10d || TCPStore || NCCL || sendBytes || ProcessGroup",)),
            Sign("remote process exited or there was a network error"),
            Sign("recvValue failed on"),
            Sign("sendBytes failed on"),
            Sign("socketProgress: Connection closed by remote peer"),
            Sign("NCCL communicator was aborted on rank"),
            Sign("Failed to recv, got 0 bytes. Connection was likely closed"),
        ),
        victim=True,
    ),
    Failure(
        name="nodes-not-reached",
        cause="DeepSpeed's launcher starts ranks on other nodes by ssh, and cannot: pdsh, a key or a known host is missing.",
        cure=(
            "make ssh NODE true work without a question from the first node (keys, known_hosts), install pdsh, or start each "
            "node with torchrun or srun"
        ),
        source="deepspeed/launcher/runner.py",
        signs=(
            Sign("launcher 'pdsh' not installed"),
            Sign("Host key verification failed", log=("pdsh || deepspeed",)),
            Sign("was not reachable via ssh. If you are running with a single node"),
            Sign("Permission denied (publickey", log=("pdsh || deepspeed",)),
        ),
    ),
    Failure(
        name="ended-by-scheduler",
        cause="Slurm ended the job: its time was over, or another job had priority. Nothing is wrong with the run.",
        cure="resume from the last checkpoint; save more often than the time that may be lost, or ask for more (--time)",
        source="Slurm's slurmstepd",
        signs=(Sign("DUE TO TIME LIMIT ***", needs=("CANCELLED AT",)), Sign("DUE TO PREEMPTION ***", needs=("CANCELLED AT",))),
    ),
    Failure(
        name="launcher-ended-by-signal",
        cause=(
            "torchrun itself was sent a signal: 1 by a terminal that closed, 2 by Ctrl-C, 15 by a scheduler, a container that "
            "stopped, a kill or the launcher on another node; nothing in this log shows that training failed."
        ),
        cure=(
            "for 1 start it in tmux or with setsid nohup; for 15 read the scheduler's log (sacct, kubectl describe pod) and "
            "the first errors of the other nodes; then resume from the last checkpoint"
        ),
        source="torch/distributed/elastic/multiprocessing/api.py, _terminate_process_handler",
        signs=(Sign("SignalException: Process {n} got signal: {n}"),),
        may_follow=True,
        question="Which signal was it, and who sent it?",
    ),
    Failure(
        name="launcher-summary",
        cause="The launcher says that a process of it ended; why is in what that process printed before.",
        cure=(
            "read the log of the rank under 'Root Cause (first observed failure)', from its first traceback on; "
            "torchrun --tee 3 --log-dir DIR keeps logs per rank"
        ),
        source="torch/distributed/elastic/multiprocessing/errors; torch's page on elastic errors",
        signs=(
            Sign("torch.distributed.elastic.multiprocessing.errors.ChildFailedError"),
            Sign("Root Cause (first observed failure):"),
            Sign("exits with return code = {n}"),
            Sign("exits with return code = -{n}", unless=("return code = -9",)),
            Sign("returned non-zero exit status {n}", needs=("accelerate || launch || torchrun || deepspeed",)),
        ),
        victim=True,
    ),
)
