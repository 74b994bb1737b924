"""The command line."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from smokehouse.checkout import Checkout
from smokehouse.errors import UserError

Channel = Annotated[
    str | None,
    typer.Option(metavar="DIR_OR_URL", envvar="SMOKEHOUSE_CHANNEL", help="A copy or mirror of conda-forge to read."),
]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="WHEEL#sha256=HEX",
        help="A wheel that no lock names, by https URL or file, such as one of flash-attn's releases; may be given again.",
    ),
]
Devel = Annotated[bool, typer.Option("--devel", help="With the compilers and the CUDA toolkit.")]
DeepSpeedOps = Annotated[
    Literal["aot", "none"] | None,
    typer.Option("--ops", help="DeepSpeed's ops: ahead of time or at first use; aot where the lock has a toolkit."),
]

# Who vouches for the workflows of GitHub.
GITHUB = "https://token.actions.githubusercontent.com"

app = typer.Typer(
    help="Locked, built and proven environments for training vision-language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("lock")
def _lock(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Environments; all when none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say which locks are not what is asked for.")] = False,
    tools: Annotated[bool, typer.Option("--tools", help="Lock the builder's own tools instead.")] = False,
    base: Annotated[bool, typer.Option("--base", help="Lock the packages of Debian under the images instead.")] = False,
    upgrade: Annotated[str | None, typer.Option(metavar="PACKAGE", help="Move this one, and what it must drag along.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only print what a new lock would change.")] = False,
    channel: Channel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Resolve environments to the files that an installer takes."""
    from smokehouse.locks import lock_all

    if check and (diff or upgrade):
        raise UserError("--check resolves nothing, so it takes no --diff and no --upgrade; drop one")
    if tools and (names or diff or upgrade or (as_json and not check)):
        raise UserError("--tools takes no names, and of the options --check; lock the environments in a run of their own")
    if base and (names or check or tools or upgrade or diff or as_json):
        raise UserError("--base takes no names and no other options; lock the environments in a run of their own")
    checkout = Checkout.find(Path.cwd())
    if base:
        from smokehouse.images import debian_lock as bases

        return bases.lock(checkout)
    if check:
        return lock_all.check_all(checkout, names or [], only_tools=tools, as_json=as_json)
    if tools:
        return lock_all.lock_tools(checkout)
    return lock_all.lock_all(checkout, names or [], channel=channel, upgrade=upgrade, dry=diff, as_json=as_json)


@app.command("bundle")
def _bundle(
    name: Annotated[str, typer.Argument(help="The environment.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The bundle.")],
    channel: Channel = None,
    only: Annotated[Literal["pip"] | None, typer.Option(help="Leave the conda half out.")] = None,
    devel: Devel = False,
) -> int:
    """Fetch everything that a machine without a network needs to install an environment; goes on where it stopped."""
    from smokehouse.installs import bundler
    from smokehouse.locks import check as locks

    locked = locks.load(Checkout.find(Path.cwd()), name)
    bundler.make(locked, folder, channel=channel, only_pip=only == "pip", devel=devel)
    return 0


@app.command("install")
def _install(
    name: Annotated[str, typer.Argument(help="The environment.")],
    folder: Annotated[Path, typer.Argument(metavar="PREFIX", help="The folder to install it in.")],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Take everything from this bundle.")] = None,
    channel: Channel = None,
    devel: Devel = False,
    used_as: Annotated[Path | None, typer.Option(metavar="PATH", help="Where PREFIX will be when it is used.")] = None,
) -> int:
    """Install both halves of an environment, without a container engine and without root; goes on where it stopped."""
    from smokehouse.installs import bundle as bundles
    from smokehouse.installs import prefix
    from smokehouse.locks import check as locks

    locked = locks.load(Checkout.find(Path.cwd()), name)
    bundled = bundles.read(bundle, locked) if bundle else None
    print(prefix.install(locked, folder, bundled=bundled, channel=channel, devel=devel, used_as=used_as))
    return 0


@app.command("build")
def _build(
    name: Annotated[str, typer.Argument(help="The environment.")],
    flavour: Annotated[Literal["runtime", "devel"], typer.Option(help="devel has compilers and the CUDA toolkit.")] = "runtime",
    base: Annotated[
        str | None,
        typer.Option(metavar="REF@sha256:…", help="Build on this, which has a shell, tar and glibc; Debian when none."),
    ] = None,
    output: Annotated[str, typer.Option(metavar="oci:DIR|docker|push:REF", help="Where the image goes.")] = "docker",
    compression: Annotated[Literal["zstd", "gzip"], typer.Option(help="gzip for engines older than 23.")] = "zstd",
    builder: Annotated[
        str | None, typer.Option(metavar="NAME", help="A builder of buildx or a docker context does it.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Take everything from this bundle.")] = None,
    channel: Channel = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="Where the checkout is from, for the labels.")] = None,
    ops: DeepSpeedOps = None,
    added: With = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step again.")] = False,
    only_prepare: Annotated[bool, typer.Option("--prepare", help="Only make what docker buildx bake needs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Build the image of an environment from its lock, the same to the bit wherever and whenever."""
    from smokehouse.images import build as building
    from smokehouse.images import extra_wheels as additions
    from smokehouse.locks import check as locks

    checkout = Checkout.find(Path.cwd())
    prepared = building.prepare(
        checkout,
        locks.load(checkout, name),
        flavour=flavour,
        base=base,
        bundled=bundle,
        channel=channel,
        source=source,
        ops=ops,
        added=[additions.read(text) for text in added or ()],
    )
    if only_prepare:
        print(f"docker buildx bake -f docker/docker-bake.hcl -f {checkout.relative(prepared.bake)} {name}")
        return 0
    built = building.build(checkout, prepared, output, compression=compression, builder=builder, no_cache=no_cache)
    print(json.dumps(asdict(built)) if as_json else f"{built.place} {built.digest}")
    return 0


@app.command("verify")
def _verify(
    reference: Annotated[str, typer.Argument(metavar="REF", help="oci:DIR, docker:NAME or HOST/NAME@sha256:…")],
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Take all that it is compared with from here.")] = None,
    channel: Channel = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The public key of who is believed.")] = None,
    identity: Annotated[str, typer.Option(metavar="URL", help="Who is believed, where there is no key: a workflow.")] = "",
    issuer: Annotated[str, typer.Option(metavar="URL", help="Who vouches for the identity.")] = GITHUB,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again, too, and compare digests.")] = False,
    trust_base: Annotated[bool, typer.Option("--trust-base", help="Do not look at the Debian below.")] = False,
    added: With = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Say whether an image is what this checkout's lock builds, file by file, and what was proven of it."""
    from smokehouse.images import extra_wheels as additions
    from smokehouse.proofs import verify as verifying
    from smokehouse.proofs.attestation import Signer

    signer = Signer(key, identity, issuer) if key or identity else None
    options = verifying.VerifyOptions(
        bundle, channel, signer, rebuild, trust_base, tuple(additions.read(text) for text in added or ())
    )
    return verifying.show(verifying.verify_reference(Checkout.find(Path.cwd()), reference, options), as_json)


@app.command("publish")
def _publish(
    name: Annotated[str, typer.Argument(help="The environment.")],
    repository: Annotated[str, typer.Argument(metavar="REF", help="Where to: HOST/NAME, without a tag.")],
    flavour: Annotated[Literal["runtime", "devel"], typer.Option(help="devel has compilers and the CUDA toolkit.")] = "runtime",
    ops: DeepSpeedOps = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Sign with this; without one, as who cosign finds.")] = None,
    built: Annotated[Path | None, typer.Option("--image", metavar="DIR", help="Publish this layout; else build.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="The image's report; else prove it now.")] = None,
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="Take everything from this bundle.")] = None,
    channel: Channel = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="Where the checkout is from, for the labels.")] = None,
    move: Annotated[bool, typer.Option("--move", help="Let tags that name another image name this one.")] = False,
    added: With = None,
) -> int:
    """Build, prove, verify and sign an image, and give it to a registry: all of it, or no tag."""
    from smokehouse.images import extra_wheels as additions
    from smokehouse.proofs import publish as publishing

    asked = tuple(additions.read(text) for text in added or ())
    options = publishing.PublishOptions(flavour, ops, key, built, report, bundle, channel, source, move, asked)
    return publishing.publish_image(Checkout.find(Path.cwd()), name, repository, options)


@app.command(
    "smoke",
    # The smoke test owns its options, --help among them.
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
def _smoke(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[NAME] [OPTIONS]...")] = None,
) -> None:
    """Install an environment and prove it; the options are those of smoke_tests, and --bundle DIR or --image REF."""
    from smokehouse.runs.container import smoke_image
    from smokehouse.runs.local import DEFAULT, smoke
    from smokehouse.runs.options import pop_option

    given, image = pop_option(arguments or [], "--image", "an image that the engine has")
    if image:
        smoke_image(Checkout.find(Path.cwd()), image, given)
    named = bool(given) and not given[0].startswith("-")
    smoke(Checkout.find(Path.cwd()), given[0] if named else DEFAULT, given[1:] if named else given)


@app.command("docs")
def _docs(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Environments; all when none.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say which pages are not what their sources say.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Take this report.json as the evidence of NAME.", metavar="FILE")
    ] = None,
) -> int:
    """Write a page for each environment, from its files alone."""
    from smokehouse.pages import update as docs

    if check and report:
        raise UserError("--check changes nothing, and --report takes a report in; give one of the two")
    checkout = Checkout.find(Path.cwd())
    return docs.check(checkout, names or []) if check else docs.make(checkout, names or [], report)


def main() -> int:
    """Run the command line and return its exit code: 0, 1 for a failed check, 2 for a mistake of the user's."""
    try:
        code = _main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    if "rattler" in sys.modules:
        # Its threads outlive its last answer, and crash an interpreter that ends under them.
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
        return _complain("interrupted; nothing half-made is in use", 130)
    except typer.Abort:
        return _complain("interrupted", 130)
    except typer.TyperException as wrong:
        return _complain(f"{wrong.format_message().rstrip('.')}; see --help", 2)
    except UserError as mistake:
        return _complain(str(mistake), 2)
    except OSError as broken:
        where = f"{broken.filename}: " if broken.filename else ""
        return _complain(f"{where}{broken.strerror or broken}; make room or mend the permissions", 2)


def _complain(message: str, code: int) -> int:
    print(f"smokehouse: {message}", file=sys.stderr)
    return code
