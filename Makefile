# Two commands matter: `make demo` and `make test`. The rest are their parts.

BIN     := target/release/quorate
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/quorate
BUNDLE  := $(CACHE)/bundles/v1.36.3
DEMO    := target/demo
SOURCES := $(shell find crates bundles -type f -not -path '*/target/*' 2>/dev/null) Cargo.toml Cargo.lock

.DEFAULT_GOAL := build
.PHONY: build demo demo-down bundle test test-fast test-lab test-designs test-drill lint sim bench bench-deploy proof proof-render dependencies clean

## The static program, at target/release/quorate.
build: $(BIN)
$(BIN): $(SOURCES) | dependencies
	cargo rustc --release --locked -p quorate --bin quorate -- -C target-feature=+crt-static
	@touch $@

## Packages of the distribution that building, the lab and the tests need.
dependencies:
	@scripts/dependencies

## Upstream Kubernetes for this machine, built once and kept in the user's cache.
bundle: $(BIN)
	$(BIN) bundle build --from source

## Three control planes and two workers on this computer, from bare machines to all checks green.
demo: $(BIN) bundle
	@scripts/demo $(BIN) $(DEMO)

# Without the program nobody takes the lab's machines down.
demo-down: $(BIN)
	@scripts/demo-down $(BIN) $(DEMO)

## Everything that can run here.
test: lint
	cargo test --workspace --locked --no-fail-fast
	$(MAKE) test-lab

## Under two minutes, without root.
test-fast:
	cargo test --workspace --locked --lib --bins

## The whole program against real machines and real Kubernetes.
test-lab: $(BIN) bundle
	QUORATE=$(abspath $(BIN)) cargo test --locked -p quorate-agent --test apiservers --test ipvs_vm
	QUORATE=$(abspath $(BIN)) cargo test --locked -p quorate-tests -- --nocapture --test-threads=1

## Every design's example file, from bare machines to all checks green, its own proof, and back: some minutes each. Then
## combinations of options that no example has.
test-designs: $(BIN) bundle
	QUORATE=$(abspath $(BIN)) cargo test --locked -p quorate-tests --test designs --test combinations -- --ignored --nocapture --test-threads=1

## Operators who stop or die in the middle of a drill.
test-drill: $(BIN) bundle
	QUORATE=$(abspath $(BIN)) cargo test --locked -p quorate-tests --test drill -- --ignored --nocapture --test-threads=1

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	scripts/deny

## Long runs of the simulations: VRRP schedules, mutated packets, the executor on fake machines.
sim:
	QUORATE_SIM_RUNS=1000000 QUORATE_FUZZ_PACKETS=100000000 cargo test --release --locked -p quorate-lb
	QUORATE_SIM_RUNS=10000 cargo test --release --locked -p quorate-run

## Side by side with haproxy and keepalived.
bench: $(BIN)
	cargo run --release --locked -p quorate-bench -- run

## Three ways from bare machines to a cluster, in turn: some twenty minutes.
bench-deploy: $(BIN) bundle
	bench/deploy/run $(BIN) target/bench-deploy
	cargo run --locked -p quorate-bench -- deploy target/bench-deploy

## The same failures against Quorate's VIP, its balancers on nodes, and haproxy with keepalived: raw data, then the page.
proof: $(BIN) bundle
	bench/proof/run $(BIN) target/proof; measured=$$?; $(MAKE) proof-render && exit $$measured

## docs/proof.md and target/proof/proof.html from the raw data.
proof-render:
	cargo run --locked -p quorate-bench -- proof target/proof

clean:
	cargo clean
