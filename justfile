# The commands that people and CI use.

# Everything CI checks.
ci:
    .ci/run

# All tests; arguments go to the test runner.
test *ARGS:
    ./test.sh {{ARGS}}

# Start the quickstart machine.
quickstart:
    cargo run --release -- run machines/quickstart

# Licences and advisories of the dependencies (needs cargo-deny).
deny:
    cargo deny check
