# `nox -s build -- NAME` runs: docker buildx bake -f docker/docker-bake.hcl -f build/images/NAME-FLAVOUR/bake.json NAME
# It writes the second file, whose target inherits this one and has the named contexts, arguments and labels; with
# --prepare, it stops there.

target "image" {
  context    = "docker" # relative to the folder that bake runs in
  dockerfile = "Dockerfile"
  target     = "image"
  # BuildKit's attestations contain timestamps; `nox -s publish` signs attestations that do not.
  attest = []
}
