# The commands of this project. `make help` lists them.

# A Rust toolchain that was installed for this user but is not on the path, as after `sudo`, which
# also makes HOME that of root: there the toolchain is that of the user who called. CARGO_HOME
# stays root's, or downloads would leave files of root in the folder of that user.
CALLER_HOME := $(if $(SUDO_USER),$(shell getent passwd '$(SUDO_USER)' | cut -d: -f6),$(HOME))
export PATH := $(PATH):$(HOME)/.cargo/bin:$(CALLER_HOME)/.cargo/bin
ifeq ($(RUSTUP_HOME)$(wildcard $(HOME)/.rustup),)
ifneq ($(wildcard $(CALLER_HOME)/.rustup),)
export RUSTUP_HOME := $(CALLER_HOME)/.rustup
endif
endif
# The demo and the scripts name files below it.
export CARGO_TARGET_DIR := $(CURDIR)/target
CARGO ?= cargo
FUZZ_SECONDS ?= 60
# Readers of our formats that are not ours; no member of the workspace.
JUDGE := --manifest-path tests/formats/Cargo.toml

# What tests alone need, and no package of this release of Debian has.
.PHONY: help root setup browser peers demo test bench check fuzz deb fresh packages-check packages-boot

help:
	@echo 'make demo    the whole chain of trust with a real guest, and five attacks that fail'
	@echo 'make test    every test, with swtpm, QEMU, OpenSSL and tpm2-tools as peers; as root'
	@echo 'make bench   figures beside swtpm on this machine, into target/bench.json (about 45 minutes);'
	@echo '             BENCH_FLAGS="--vrots 20 --skip anchor" for a quick look, --help says more'
	@echo 'make check   format, lints, documentation, licences, direction of dependencies'
	@echo 'make fuzz    coverage-guided fuzzing, FUZZ_SECONDS=$(FUZZ_SECONDS) for each target'
	@echo 'make deb     Debian packages for hosts, guests and devices, in target/deb'
	@echo 'make fresh   make demo in minimal root file systems of Debian 12 and 13; as root'
	@echo 'make packages-check   the packages in fresh roots of Debian 12 and 13, as root'
	@echo 'make packages-boot    boots Debian 12 and 13 with the packages, and has every unit do its work; as root'
	@echo 'make peers   fetches the newer swtpm, the promtool and the pycose that tests need (make test calls it)'
	@echo 'make setup   installs missing Debian packages (the others call it)'

# Some tests change users, or make folders of other users.
root:
	@[ "$$(id -u)" = 0 ] || { \
		echo 'make test: some tests change users, so all of them are run as root:' >&2; \
		echo '    sudo make test' >&2; \
		exit 1; }

setup:
	@sh scripts/setup.sh

browser: setup
	@sh scripts/setup.sh --tests

peers: browser
	@CARGO_TARGET_DIR=$(CURDIR)/target sh scripts/peers.sh
	@CARGO_TARGET_DIR=$(CURDIR)/target sh scripts/promtool.sh
	@CARGO_TARGET_DIR=$(CURDIR)/target sh scripts/pycose.sh

demo: setup
	@echo '== building (a few minutes the first time)'
	@$(CARGO) build --locked --bins --workspace
	@target/debug/demo

# Everything but the examples in comments, which are none of Rust.
TESTS := --locked --workspace --tests

# Tests wait for disks, deadlines and machines more than they compute.
test: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
test: root setup browser peers
	$(CARGO) test $(TESTS) --no-run
	$(CARGO) build --locked --bins --workspace
	$(CARGO) build --locked $(JUDGE)
	$(CARGO) test $(TESTS) --no-fail-fast

bench: setup browser
	$(CARGO) build --locked --release --bins --workspace
	@target/release/bench $(BENCH_FLAGS)

check: setup
	$(CARGO) fmt --all --check
	$(CARGO) fmt --all --check $(JUDGE)
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked $(JUDGE) -- -D warnings
	$(CARGO) clippy --locked -p trust-anchor --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items
	$(CARGO) test --quiet --locked --workspace --test workspace_rules
	sh scripts/deny.sh

fuzz: setup
	sh scripts/fuzz.sh $(FUZZ_SECONDS)

deb: setup
	sh scripts/deb.sh

fresh:
	sh scripts/fresh.sh

packages-check: setup
	sh scripts/package-roots.sh

packages-boot: setup
	sh scripts/package-boots.sh
