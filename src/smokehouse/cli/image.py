"""The verbs for images."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.cli.options import (
    BaseOption,
    BundleOption,
    ChannelOption,
    FlavourOption,
    JsonOption,
    NameArgument,
    OpsOption,
    SourceOption,
    WithOption,
)
from smokehouse.errors import UserError

if TYPE_CHECKING:
    from smokehouse.proofs import Verification

_SHOWN = 20  # differences of an image that are printed

# OIDC issuer of GitHub workflows.
GITHUB = "https://token.actions.githubusercontent.com"


def build(
    name: NameArgument,
    *,
    flavour: FlavourOption = "runtime",
    base: BaseOption = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="oci:DIR|docker|push:REF", help="Destination of the image.  [default: docker]"),
    ] = None,
    compression: Annotated[
        Literal["zstd", "gzip"], typer.Option(help="Compression of layers; gzip for Docker Engine older than 23.")
    ] = "zstd",
    builder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Build with BuildKit, on this Buildx builder or Docker context.  [default: without an engine]"
        ),
    ] = None,
    bundle: BundleOption = None,
    channel: ChannelOption = None,
    source: SourceOption = None,
    ops: OpsOption = None,
    added: WithOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Make every layer again.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the image ID and layers to lockfiles/NAME/image.json; no other output.")
    ] = False,
    only_prepare: Annotated[
        bool, typer.Option("--prepare", help="Prepare the inputs of docker buildx bake; print its command.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Build the image of an environment from its lock, reproducibly: same lock, same digest."""
    from smokehouse import locks
    from smokehouse.images import build as building
    from smokehouse.installs import extra_wheels

    checkout = Checkout.find(Path.cwd())
    others = {"--output": output, "--base": base, "--builder": builder, "--with": added, "--prepare": only_prepare}
    if record and (found := [option for option, value in others.items() if value]):
        raise UserError(f"--record: expected an image of the lock alone and no output, found {', '.join(found)}; drop one")
    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    request = building.ImageRequest(flavour, ops, base, wheels, bundle, channel, source)
    prepared = building.prepare_image(checkout, locks.load(checkout, name), request)
    if record:
        recorded = building.record_image(checkout, prepared, no_cache=no_cache)
        print(json.dumps(asdict(recorded)) if as_json else f"{recorded.place} {recorded.id}")
        return 0
    if only_prepare:
        elsewhere = "" if prepared.folder == Path.cwd() else f"cd {shlex.quote(str(prepared.folder))} && "
        bake = shlex.quote(str(prepared.bake.relative_to(prepared.folder)))
        print(f"{elsewhere}docker buildx bake -f docker/docker-bake.hcl -f {bake} {name}")
        return 0
    built = building.build_image(
        checkout, prepared, output or "docker", compression=compression, builder=builder, no_cache=no_cache
    )
    print(json.dumps(asdict(built)) if as_json else f"{built.place} {built.digest}")
    return 0


def verify(
    reference: Annotated[str, typer.Argument(metavar="REF", help="oci:DIR, docker:NAME or HOST/NAME@sha256:…")],
    *,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Compare with this bundle.")] = None,
    channel: ChannelOption = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Trusted public key.")] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="URL", help="Trusted identity for keyless signatures: a workflow.")
    ] = None,
    issuer: Annotated[str, typer.Option(metavar="URL", help="OIDC issuer of the identity.")] = GITHUB,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Policy: who has to have signed, whether on GPUs, and how long ago at most."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare with lockfiles/NAME/image.json; fetch and make nothing else.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REF@sha256:…",
            help="Base image to allow; of a Debian base, so named, the image's layer is used.  [default: Debian, built again]",
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="URL of the checkout that the labels must have.")] = None,
    added: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="WHEEL#sha256=HEX",
            help="Allow and require a wheel that is not in the lock, by https URL or file; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Make an image again from this checkout's lock, compare the two by hash, and show what was proven of it.

    Nothing but the lock and what --with and --base name is allowed, whatever the image says. With --key, --identity or
    --policy, an image without a valid statement by that signer does not pass.
    """
    from smokehouse.installs import extra_wheels
    from smokehouse.proofs import Signer, VerifyOptions, verify_reference
    from smokehouse.proofs import policy as policies

    if key is not None and identity is not None:
        raise UserError("verify: expected --key or --identity, found both; specify who has to have signed")
    if policy is not None and (key is not None or identity is not None):
        raise UserError("--policy: expected no --key and no --identity, as it says who has to have signed; drop them")
    others = {"--bundle": bundle, "--base": base, "--with": added}  # the channel can come from the environment
    if quick and (found := [option for option, value in others.items() if value]):
        raise UserError(f"--quick: expected no {found[0]}, which is for an image that is made again; drop one of them")
    signer = Signer(key, identity or "", issuer) if key is not None or identity is not None else None
    if policy is not None:
        signer = policies.read(policy)
    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    options = VerifyOptions(bundle, channel, signer, wheels, base, source, quick)
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
    print(f"id       {verification.id}")
    print(f"lock     {verification.environment}, sha256:{verification.lock}")
    for text in verification.added:
        print(f"with     {text}, which is not in the lock")
    print(f"base     {verification.base}")
    again = verification.method == "made again"
    if verification.layers:
        how = "made again here from the lock" if again else "taken from image.json, not made again,"
        print(f"layers   {len(verification.layers)}, {how} and compared by hash")
    for text in verification.claims:
        print(f"claim    {text}")
    print(f"proven   {verification.proof}")
    builds = f"what the lock builds{' with the wheels above' if verification.added else ''}"
    builds = builds if again else "what image.json records for the lock"
    if verification.differences:
        print(f"DIFFERENT  this is not {builds}")
    elif verification.proven is False:
        print(f"NOT PROVEN  this is {builds}, but no valid statement by the trusted signer proves it")
    else:
        print(f"VERIFIED  this is {builds}")


def publish(
    name: NameArgument,
    repository: Annotated[str, typer.Argument(metavar="REF", help="Destination: HOST/NAME, without a tag.")],
    *,
    flavour: FlavourOption = "runtime",
    ops: OpsOption = None,
    base: BaseOption = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key to sign with.  [default: keyless]")] = None,
    built: Annotated[
        Path | None, typer.Option("--image", metavar="DIR", help="OCI layout to publish.  [default: build one]")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Report of the image.  [default: run its smoke test]")
    ] = None,
    bundle: BundleOption = None,
    channel: ChannelOption = None,
    source: SourceOption = None,
    move: Annotated[bool, typer.Option("--move", help="Overwrite existing tags.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write lockfiles/NAME/image.json; publish nothing that differs from it.")
    ] = False,
    added: WithOption = None,
    as_json: JsonOption = False,
) -> int:
    """Build, prove, verify, sign and push an image; tags are pushed last."""
    from smokehouse.images import ImageRequest
    from smokehouse.installs import extra_wheels
    from smokehouse.proofs import PublishOptions, publish_image

    if record and (found := [option for option, value in {"--base": base, "--with": added}.items() if value]):
        raise UserError(f"--record: expected an image of the lock alone, found {', '.join(found)}; drop one")
    wheels = tuple(extra_wheels.parse(text) for text in added or ())
    request = ImageRequest(flavour, ops, base, wheels, bundle, channel, source)
    options = PublishOptions(request, key, built, report, move, record)
    publication = publish_image(Checkout.find(Path.cwd()), name, repository, options)
    if not publication.verification.passed:
        _print_verification(publication.verification)
        return 1
    if as_json:
        print(json.dumps(publication.as_json()))
        return 0
    for tagged in publication.references:
        print(tagged)
    return 0
