# What `nox -s build -- NAME` runs: docker buildx bake -f docker/docker-bake.hcl -f build/images/NAME-FLAVOUR/bake.json NAME.
# It writes the second file, with the contexts of what it downloaded; `nox -s build -- NAME --prepare` stops after that.

group "default" {
  targets = ["qwen2_5-vl"]
}

# Names of targets have underscores for dots; bake accepts either.

target "image" {
  context    = "docker"
  dockerfile = "Dockerfile"
  target     = "image"
  # Attestations are separate, signed statements; BuildKit's contain times, and would change the digest.
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
