"""Hubs and proxies: what is downloaded, or should have been."""

from smokehouse_loader.failures.model import Failure, Sign

_HUB = "huggingface || hf_hub || hf-mirror || hub.py || cached_file || snapshot_download || modelscope || HF_ENDPOINT"

# huggingface_hub warns so of each request that it tries again; if none succeeds, an exception follows.
_TRIED_AGAIN = "thrown while requesting"

FAILURES = (
    Failure(
        name="hub-gated",
        cause="The repository is gated or private, and the request had no token with access to it.",
        cure=(
            "accept the conditions on its page, then huggingface-cli login (or HF_TOKEN) in the process that "
            "downloads, on every node"
        ),
        source="huggingface_hub/errors.py, GatedRepoError",
        signs=(
            Sign("You are trying to access a gated repo"),
            Sign("Access to model {} is restricted"),
            Sign("GatedRepoError"),
            Sign("Cannot access gated repo for url"),
        ),
        excludes=("hub-repository-missing", "hub-unreachable"),
    ),
    Failure(
        name="hub-repository-missing",
        cause=(
            "There is no such repository for this user, and no such local directory: a relative path, a typing "
            "error, or a private repository."
        ),
        cure="pass an absolute path that exists on every node, or the full owner/name, and log in where it is private",
        source="transformers/utils/hub.py and huggingface_hub/errors.py",
        signs=(
            Sign("is not a local folder and is not a valid model identifier listed on"),
            Sign("RepositoryNotFoundError: {n} Client Error"),
            Sign("RepositoryNotFoundError: 40{n}"),
            Sign("Repo id must be in the form 'repo_name' or 'namespace/repo_name'"),
            Sign("Repo id must use alphanumeric chars"),
            Sign("Incorrect path_or_model_id"),
        ),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="hub-offline",
        cause="HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, and a file is not in the cache.",
        cure=(
            "download it beforehand into the same HF_HOME (huggingface-cli download), or unset the variable "
            "where there is a network"
        ),
        source="huggingface_hub/errors.py, OfflineModeIsEnabled and LocalEntryNotFoundError",
        signs=(
            Sign("OfflineModeIsEnabled"),
            Sign("as offline mode is enabled. To disable it, please unset"),
            Sign("outgoing traffic has been disabled. To enable repo look-ups and downloads online"),
            Sign("Cannot find the requested files in the disk cache and outgoing traffic has been disabled"),
            Sign("Cannot find the requested files in the cached path and outgoing traffic has been disabled"),
        ),
        excludes=("hub-unreachable", "hub-file-missing"),
    ),
    Failure(
        name="hub-certificate",
        cause=(
            "The certificate of the hub or of a proxy in between is not trusted by Python: the proxy signs with "
            "its own authority."
        ),
        cure="set REQUESTS_CA_BUNDLE and SSL_CERT_FILE to a bundle that has the proxy's authority",
        source="CPython's ssl module",
        signs=(
            Sign("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"),
            Sign("certificate verify failed: self-signed certificate in certificate chain"),
            Sign("certificate verify failed: unable to get local issuer certificate"),
        ),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="hub-proxy",
        cause="A proxy that the environment names (HTTPS_PROXY) refused or did not answer.",
        cure=(
            "correct HTTPS_PROXY and NO_PROXY, with user and password where it requires them (407), or set "
            "HF_ENDPOINT to a mirror"
        ),
        source="urllib3 and requests",
        signs=(
            Sign(
                "ProxyError(",
                needs=("Cannot connect to proxy || Unable to connect to proxy || Tunnel connection failed || 407",),
            ),
            Sign("Tunnel connection failed: {n}"),
            Sign("407 Proxy Authentication Required"),
        ),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="hub-rate-limit",
        cause="The hub refused because of too many requests from this address: every rank of every job asks for every file.",
        cure="download once (HF_HUB_OFFLINE=1 afterwards), set HF_TOKEN, and use a shared HF_HOME",
        source="huggingface_hub/utils/_http.py",
        signs=(
            Sign("429 Client Error: Too Many Requests", needs=(_HUB,)),
            Sign("429 Too Many Requests", needs=(_HUB,)),
        ),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="hub-xet",
        cause=(
            "A download through the hub's Xet storage failed: a proxy or firewall lets the hub through and not its servers of "
            "chunks (xethub.hf.co), or an old hf-xet met an error that it did not retry."
        ),
        cure="set HF_HUB_DISABLE_XET=1 (or upgrade hf-xet), or allow cas-server.xethub.hf.co and transfer.xethub.hf.co",
        source="hf_xet's errors.rs; huggingface_hub's guide to Xet",
        signs=(
            Sign(
                "Data processing error: ",
                needs=("CAS service || xet || File reconstruction || Request failed || Network error",),
            ),
            Sign("CAS service error : "),
        ),
        excludes=("hub-unreachable",),
    ),
    Failure(
        name="hub-unreachable",
        cause="The hub cannot be reached from this machine, and the file is not in the cache.",
        cure=(
            "download it on a machine with a network into the same HF_HOME, or pass a local directory; behind a "
            "firewall set HF_ENDPOINT or HTTPS_PROXY"
        ),
        source="transformers/utils/hub.py",
        signs=(
            Sign("We couldn't connect to '"),
            Sign("LocalEntryNotFoundError"),
            Sign("Max retries exceeded with url", needs=(_HUB,), unless=(_TRIED_AGAIN,)),
            Sign("HTTPSConnectionPool(host='huggingface.co'", unless=(_TRIED_AGAIN,)),
            Sign("HTTPSConnectionPool(host='cdn-lfs", unless=(_TRIED_AGAIN,)),
        ),
        question="Does the compute node have a network at all, or only the login node?",
    ),
    Failure(
        name="hub-file-missing",
        cause="The repository or directory lacks a file that was asked for, or the revision has no such file.",
        cure=(
            "list its files; pass subfolder=, revision= or variant= where the file is there, or take the file "
            "from the base model"
        ),
        source="transformers/utils/hub.py and huggingface_hub/errors.py, EntryNotFoundError",
        signs=(
            Sign("does not appear to have a file named"),
            Sign("EntryNotFoundError: 404 Client Error"),
            Sign("RevisionNotFoundError"),
        ),
        apart="weights, preprocessor_config.json and adapters have entries of their own",
    ),
)
