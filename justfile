# The everyday commands: `just` lists them. Each is one line that also works without `just`.

_default:
    @just --list

# Everything that must hold before a change lands
ci:
    .ci/run

# What takes longer: the suite under load, a simulated day, fuzzing, advisories
nightly:
    .ci/nightly

# All tests, or those that match: `just test -- --test punch crowd::`
test *ARGS:
    cargo test --locked {{ARGS}}

lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Every ordered pair of NAT kinds on a simulated network
lab *ARGS:
    cargo run --release --locked -- lab --simulated {{ARGS}}

# The same on NATs of the kernel (Linux, root, nftables)
kernel-lab *ARGS:
    cargo run --release --locked -- lab {{ARGS}}

# One fuzz target: `just fuzz frames 60`
fuzz TARGET SECONDS="60":
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# One benchmark: core, floods, soak, time_to_connect or transport
bench NAME:
    cargo bench --locked --bench {{NAME}}

# The crates as they would be published
package:
    cargo package --locked -p libp2p-punch-proto -p libp2p-punch -p libp2p-punch-node -p libp2p-punch-sim
