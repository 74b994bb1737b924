# `nox -s build -- NAME` runs: docker buildx bake -f docker/docker-bake.hcl -f build/images/NAME-FLAVOUR/bake.json NAME
# It writes the second file, which has the named contexts, arguments and labels; with --prepare, it stops there.

group "default" {
  targets = ["qwen2_5-vl"]
}

# In a file, bake requires underscores for the dots in names of targets; on the command line it accepts both.

target "image" {
  context    = "docker"
  dockerfile = "Dockerfile"
  target     = "image"
  # BuildKit's attestations contain timestamps; `nox -s publish` signs attestations that do not.
  attest = []
}

target "qwen2_5-vl" {
  inherits = ["image"]
}

target "qwen2_5-vl-latest" {
  inherits = ["image"]
}

target "qwen2-vl" {
  inherits = ["image"]
}

target "vlm-r1" {
  inherits = ["image"]
}
