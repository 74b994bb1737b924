# What `nox -s build -- NAME` runs: docker buildx bake -f docker/docker-bake.hcl -f build/images/NAME-FLAVOUR/bake.json NAME.
# The second file, written by it, has the contexts with what was fetched; `nox -s build -- NAME --prepare` stops there.

group "default" {
  targets = ["qwen2_5-vl"]
}

# bake knows a target by its name with dots as underscores, and takes either.

target "image" {
  context    = "docker"
  dockerfile = "Dockerfile"
  target     = "image"
  # What attests to an image is a statement of its own, with a signature; BuildKit's has times in it.
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
