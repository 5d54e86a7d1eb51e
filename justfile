# Every gate in one place; `scripts/test` is what the README and CI call.

# Build, lint and test everything, with all set-up.
test:
    scripts/test

# Fetch the base model, build, serve the default soup.
serve *args:
    scripts/quickstart {{ args }}

fmt:
    cargo fmt --all

lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings

# Writes the tables of options into the pages, from the programs' own definitions.
pages:
    cargo run --release --bin ladle -- options docs/operations.md
    cargo run --release --package ladle-training --bin train-backbones -- options docs/training.md

# The release archive: binaries, man pages, completions.
package:
    scripts/package

# Licences, advisories, sources; needs `cargo install cargo-deny`.
deny:
    cargo deny check

bench-merge:
    cargo bench --workspace --bench merge

bench-decode:
    cargo bench --workspace --bench decode
