"""The command line: verbs, their options, and everything that is printed for a person."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.console import status
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from smokehouse.proofs import Verification

ChannelOption = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_URL", envvar="SMOKEHOUSE_CHANNEL", help="Copy or mirror of conda-forge to use."),
]
WithOption = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="WHEEL#sha256=HEX",
        help="Add a wheel that is not in the lock, by https URL or file, such as a flash-attn release; repeatable.",
    ),
]
DevelOption = Annotated[bool, typer.Option("--devel", help="Include the compilers and the CUDA toolkit.")]
OpsOption = Annotated[
    Literal["aot", "none"] | None,
    typer.Option(
        "--ops", help="Compile DeepSpeed's ops ahead of time or at first use.  [default: aot where the lock has a toolkit]"
    ),
]

_SHOWN = 20  # differences of an image that are printed

# OIDC issuer of GitHub workflows.
GITHUB = "https://token.actions.githubusercontent.com"

app = typer.Typer(
    help="Locked, built and proven environments for training vision-language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("lock")
def _lock(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Environments.  [default: all]")] = None,
    check: Annotated[bool, typer.Option("--check", help="Report out-of-date locks; change nothing.")] = False,
    tools: Annotated[bool, typer.Option("--tools", help="Lock Smokehouse's own tools instead.")] = False,
    base: Annotated[bool, typer.Option("--base", help="Lock the Debian packages of the base image instead.")] = False,
    upgrade: Annotated[
        str | None, typer.Option(metavar="PACKAGE", help="Upgrade only PACKAGE and the dependencies that must change.")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Print what a new lock would change; write nothing.")] = False,
    drift: Annotated[
        bool,
        typer.Option("--drift", help="Print what the index would answer today for each lock; exit with 1 where it differs."),
    ] = False,
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Allow a cut-off of the last 14 days, for which an index still adds files.")
    ] = False,
    channel: ChannelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Resolve environments to lock files: one version, file and hash per package."""
    from smokehouse.locks import lock_all

    if check and (diff or drift or upgrade or unsettled):
        raise UserError("--check: expected no option but --tools and --json, as it resolves nothing; drop the others")
    if drift and (diff or upgrade or unsettled):
        raise UserError("--drift: expected no --diff, --upgrade or --unsettled, as it changes nothing; drop them")
    if tools and (names or diff or drift or upgrade or (as_json and not check)):
        raise UserError(
            "--tools: expected no names and no option but --check and --unsettled; lock the environments in a separate run"
        )
    if base and (names or check or tools or upgrade or diff or drift or unsettled or as_json):
        raise UserError("--base: expected no names and no other options; lock the environments in a separate run")
    checkout = Checkout.find(Path.cwd())
    if base:
        from smokehouse.images import debian_lock as bases

        return bases.lock(checkout)
    if check:
        return lock_all.check_all(checkout, names or [], only_tools=tools, as_json=as_json)
    if tools:
        return lock_all.lock_tools(checkout, unsettled=unsettled)
    if drift:
        return lock_all.drift(checkout, names or [], channel=channel, as_json=as_json)
    return lock_all.lock_all(
        checkout, names or [], channel=channel, upgrade=upgrade, dry=diff, unsettled=unsettled, as_json=as_json
    )


@app.command("bundle")
def _bundle(
    name: Annotated[str, typer.Argument(help="Environment.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle to create or continue.")],
    channel: ChannelOption = None,
    only: Annotated[Literal["pip"] | None, typer.Option(help="Leave out the conda packages.")] = None,
    devel: DevelOption = False,
) -> int:
    """Fetch everything that is needed to install an environment without a network; continues an interrupted call."""
    from smokehouse import locks
    from smokehouse.installs import bundler

    locked = locks.load(Checkout.find(Path.cwd()), name)
    bundler.make(locked, folder, channel=channel, only_pip=only == "pip", devel=devel)
    return 0


@app.command("install")
def _install(
    name: Annotated[str, typer.Argument(help="Environment.")],
    folder: Annotated[Path, typer.Argument(metavar="PREFIX", help="Folder to install into.")],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Install from this bundle alone.")] = None,
    channel: ChannelOption = None,
    devel: DevelOption = False,
    used_as: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Final path, if PREFIX will be relocated.  [default: PREFIX]")
    ] = None,
) -> int:
    """Install an environment without root and without a container engine; continues an interrupted call."""
    from smokehouse import locks
    from smokehouse.installs import bundle as bundles
    from smokehouse.installs import prefix

    locked = locks.load(Checkout.find(Path.cwd()), name)
    bundled = bundles.read(bundle, locked) if bundle else None
    print(prefix.install(locked, folder, bundled=bundled, channel=channel, devel=devel, used_as=used_as))
    return 0


@app.command("build")
def _build(
    name: Annotated[str, typer.Argument(help="Environment.")],
    flavour: Annotated[
        Literal["runtime", "devel"], typer.Option(help="devel adds compilers and the CUDA toolkit.")
    ] = "runtime",
    base: Annotated[
        str | None,
        typer.Option(metavar="REF@sha256:…", help="Base image, with a shell, tar and glibc.  [default: Debian]"),
    ] = None,
    output: Annotated[str, typer.Option(metavar="oci:DIR|docker|push:REF", help="Destination of the image.")] = "docker",
    compression: Annotated[
        Literal["zstd", "gzip"], typer.Option(help="Compression of layers; gzip for Docker Engine older than 23.")
    ] = "zstd",
    builder: Annotated[str | None, typer.Option(metavar="NAME", help="Buildx builder or Docker context to use.")] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Install from this bundle alone.")] = None,
    channel: ChannelOption = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="URL of the checkout, for the labels.")] = None,
    ops: OpsOption = None,
    added: WithOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ignore the build cache.")] = False,
    only_prepare: Annotated[
        bool, typer.Option("--prepare", help="Prepare the inputs of docker buildx bake; print its command.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Build the image of an environment from its lock, reproducibly: same lock, same digest."""
    from smokehouse import locks
    from smokehouse.images import build as building
    from smokehouse.images import extra_wheels

    checkout = Checkout.find(Path.cwd())
    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    request = building.ImageRequest(flavour, ops, base, wheels, bundle, channel, source)
    prepared = building.prepare_image(checkout, locks.load(checkout, name), request)
    if only_prepare:
        print(f"docker buildx bake -f docker/docker-bake.hcl -f {checkout.relative(prepared.bake)} {name}")
        return 0
    built = building.build_image(checkout, prepared, output, compression=compression, builder=builder, no_cache=no_cache)
    print(json.dumps(asdict(built)) if as_json else f"{built.place} {built.digest}")
    return 0


@app.command("verify")
def _verify(
    reference: Annotated[str, typer.Argument(metavar="REF", help="oci:DIR, docker:NAME or HOST/NAME@sha256:…")],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Compare with this bundle.")] = None,
    channel: ChannelOption = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Trusted public key.")] = None,
    identity: Annotated[str, typer.Option(metavar="URL", help="Trusted identity for keyless signatures: a workflow.")] = "",
    issuer: Annotated[str, typer.Option(metavar="URL", help="OIDC issuer of the identity.")] = GITHUB,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Rebuild the image and compare digests.")] = False,
    trust_base: Annotated[bool, typer.Option("--trust-base", help="Skip the comparison of the Debian base.")] = False,
    added: WithOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Verify that an image is what this checkout's lock builds, and show what was proven of it."""
    from smokehouse.images import extra_wheels
    from smokehouse.proofs import Signer, VerifyOptions, verify_reference

    signer = Signer(key, identity, issuer) if key or identity else None
    options = VerifyOptions(
        bundle, channel, signer, rebuild, trust_base, tuple(extra_wheels.parse(text) for text in added or ())
    )
    verification = verify_reference(Checkout.find(Path.cwd()), reference, options)
    if as_json:
        print(json.dumps(verification.as_json(), indent=1))
    else:
        _print_verification(verification)
    return int(not verification.passed)


def _print_verification(verification: "Verification") -> None:
    """Print the result of verifying an image: the first differences, then what it is and what was proven of it."""
    for difference in verification.differences[:_SHOWN]:
        where = f"layer {difference.layer}: " if difference.layer else ""
        print(f"{where}{difference.path}: {difference.problem}")
    if (more := len(verification.differences) - _SHOWN) > 0:
        print(f"and {more} more; --json lists them all")
    print(f"image    {verification.digest}")
    print(f"lock     {verification.environment}, sha256:{verification.lock}")
    for text in verification.added:
        print(f"with     {text}, which is not in the lock")
    print(f"base     {verification.base}")
    print(f"files    {', '.join(f'{count} of {owner}' for owner, count in verification.files.items())}")
    if verification.uncompared:
        some = ", ".join(path.rpartition("/")[2] for path in verification.uncompared[:4])
        how = "compared by the rebuild" if verification.rebuilt else "not compared; use --rebuild"
        print(f"built    {len(verification.uncompared)} files were built from source ({some} ...), {how}")
    if verification.rebuilt:
        print(f"rebuilt  {verification.rebuilt}")
    print(f"proven   {verification.proof or 'nothing: OCI layouts and engines have no statements'}")
    builds = f"what the lock builds{' with the wheels above' if verification.added else ''}"
    print(f"VERIFIED  this is {builds}" if verification.passed else f"DIFFERENT  this is not {builds}")


@app.command("publish")
def _publish(
    name: Annotated[str, typer.Argument(help="Environment.")],
    repository: Annotated[str, typer.Argument(metavar="REF", help="Destination: HOST/NAME, without a tag.")],
    flavour: Annotated[
        Literal["runtime", "devel"], typer.Option(help="devel adds compilers and the CUDA toolkit.")
    ] = "runtime",
    ops: OpsOption = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key to sign with.  [default: keyless]")] = None,
    built: Annotated[
        Path | None, typer.Option("--image", metavar="DIR", help="OCI layout to publish.  [default: build one]")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Report of the image.  [default: run its smoke test]")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Install from this bundle alone.")] = None,
    channel: ChannelOption = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="URL of the checkout, for the labels.")] = None,
    move: Annotated[bool, typer.Option("--move", help="Overwrite existing tags.")] = False,
    added: WithOption = None,
) -> int:
    """Build, prove, verify, sign and push an image; tags are pushed last."""
    from smokehouse.images import ImageRequest, extra_wheels
    from smokehouse.proofs import PublishOptions, publish_image

    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    request = ImageRequest(flavour, ops, None, wheels, bundle, channel, source)
    options = PublishOptions(request, key, built, report, move)
    publication = publish_image(Checkout.find(Path.cwd()), name, repository, options)
    if not publication.verification.passed:
        _print_verification(publication.verification)
        return 1
    for tagged in publication.references:
        print(tagged)
    return 0


@app.command(
    "smoke",
    # The smoke test owns its options, --help among them.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
def _smoke(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[NAME] [OPTIONS]...")] = None,
) -> None:
    """Install an environment and prove it; takes the options of smoke_tests, --bundle DIR and --image REF."""
    from smokehouse.runs import DEFAULT, pop_option, smoke, smoke_image

    given, image = pop_option(arguments or [], "--image", "an image that the engine has")
    if image:
        smoke_image(Checkout.find(Path.cwd()), image, given)
    named = bool(given) and not given[0].startswith("-")
    smoke(Checkout.find(Path.cwd()), given[0] if named else DEFAULT, given[1:] if named else given)


@app.command("docs")
def _docs(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Environments.  [default: all]")] = None,
    check: Annotated[bool, typer.Option("--check", help="Report out-of-date pages; change nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Adopt this report.json as the evidence of NAME.", metavar="FILE")
    ] = None,
) -> int:
    """Write the page of each environment from its files."""
    from smokehouse.pages import update as docs

    if check and report:
        raise UserError("--check: expected no --report, as it changes nothing; drop one")
    checkout = Checkout.find(Path.cwd())
    return docs.check(checkout, names or []) if check else docs.make(checkout, names or [], report)


def main() -> int:
    """Run the command line and return its exit code: 0, 1 for a failed check, 2 for invalid input."""
    try:
        code = _main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    if "rattler" in sys.modules:
        # Its threads outlive the last call and crash an interpreter that exits under them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        return int(app(standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return _complain("interrupted; no partial result is in use", 130)
    except typer.Abort:
        return _complain("interrupted", 130)
    except typer.TyperException as wrong:
        return _complain(f"{wrong.format_message().rstrip('.')}; see --help", 2)
    except UserError as mistake:
        return _complain(str(mistake), 2)
    except OSError as broken:
        where = f"{broken.filename}: " if broken.filename else ""
        return _complain(f"{where}{broken.strerror or broken}; free disk space or fix permissions", 2)


def _complain(message: str, code: int) -> int:
    status(message)
    return code
