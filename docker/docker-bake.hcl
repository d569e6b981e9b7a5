# All images: `docker buildx bake -f docker/docker-bake.hcl`, one: `... bake -f docker/docker-bake.hcl gpu`. The stages they share are built
# once. Every image carries an SBOM (SPDX) and its provenance as attestations; they are kept when the images are pushed
# (`--push`) or written as an OCI archive: `docker buildx imagetools inspect IMAGE --format '{{ json .SBOM }}'`.
variable "REGISTRY" { default = "machinist" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }
# Several, as "linux/amd64,linux/arm64", need a builder for each and `--push`.
variable "PLATFORMS" { default = "" }

group "default" { targets = ["base", "api", "gpu", "hybrid"] }

target "common" {
  context    = "."
  dockerfile = "docker/Dockerfile"
  args       = { VERSION = VERSION, REVISION = REVISION }
  platforms  = PLATFORMS == "" ? [] : split(",", PLATFORMS)
  attest     = ["type=sbom", "type=provenance,mode=max"]
}

target "image" {
  name     = image
  matrix   = { image = ["base", "api", "gpu", "hybrid", "dev"] }
  inherits = ["common"]
  target   = image
  tags     = ["${REGISTRY}-${image}:${VERSION}"]
}
