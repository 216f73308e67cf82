# The few things one does in this repository. Each target installs what it misses (Debian packages as
# root or through sudo, the rest into .venv) and is quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LEFT := $(VENV)/.done

# Debian's own Python needs packages for venv and headers; another one brings both.
FOUND := $(shell command -v $(PYTHON) 2>/dev/null)
PYTHON_PACKAGES := $(if $(filter-out /usr/bin/% /bin/%,$(FOUND)),,python3 python3-venv python3-dev)
# systemd-python is compiled.
BUILD_PACKAGES := gcc libc6-dev pkg-config libsystemd-dev
TOKEN_PACKAGES := softhsm2 opensc openssl swtpm swtpm-tools tpm2-tools tpm2-abrmd libtpm2-pkcs11-1 \
	libtss2-tcti-swtpm0 libtss2-tcti-tabrmd0 libnss3 libnss3-tools dbus gcc libc6-dev mmdebstrap
TEST_PACKAGES := chromium-headless-shell iproute2 postgresql procps strace $(TOKEN_PACKAGES)
DEMO_PACKAGES := softhsm2 opensc iproute2 postgresql
BENCH_PACKAGES := softhsm2 opensc iproute2 iperf3 postgresql openssh-server openssh-client

# Most tests wait for processes and sockets: more of them at once than there are cores. A file's tests stay together.
AT_ONCE := -n $(shell expr $$(nproc) + 1) --dist loadfile

# Every line of these is covered, in every branch; of the rest, most.
PURE := edge/wire/*,edge/identity/*,edge/policy/*,edge/config/*,edge/channel/*

.DEFAULT_GOAL := help
.PHONY: help venv test check test-interop test-tokens test-boot deb demo bench clean
.PHONY: packages-test packages-tokens packages-boot packages-deb packages-demo packages-bench

help:
	@echo "make venv          leaves the command at $(BIN)/ockam-edge"
	@echo "make demo          a tunnel to a database through a relay, explained"
	@echo "make test          style, types, tests, coverage"
	@echo "make test-interop  only the tests against a stock ockam"
	@echo "make test-tokens   every token through its own module; prints the matrix"
	@echo "make deb           Debian packages for amd64 and arm64, in dist/"
	@echo "make test-boot     the packages on a real systemd, in containers; as root, 1.1 GB in \$$EDGE_BOOT_CACHE"
	@echo "make bench         the table of speeds"
	@echo "make clean         removes what the others made in this folder"

$(LEFT)/venv: pyproject.toml
	@sh .ci/packages $(PYTHON_PACKAGES) $(BUILD_PACKAGES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed")'
	@test -x $(BIN)/python || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install -q --use-pep517 --disable-pip-version-check -e .
	@mkdir -p $(LEFT)
	@touch $@

venv: $(LEFT)/venv

$(LEFT)/test: $(LEFT)/venv
	@$(BIN)/python -m pip install -q --use-pep517 --disable-pip-version-check -e '.[test]'
	@touch $@

packages-test:
	@sh .ci/packages $(TEST_PACKAGES)

packages-tokens:
	@sh .ci/packages $(TOKEN_PACKAGES)

packages-deb:
	@sh .ci/packages $(DEB_PACKAGES)

packages-boot:
	@sh .ci/packages $(BOOT_PACKAGES)

packages-demo:
	@sh .ci/packages $(DEMO_PACKAGES)

packages-bench:
	@sh .ci/packages $(BENCH_PACKAGES)

check: $(LEFT)/test
	$(BIN)/ruff check .
	$(BIN)/mypy

test: packages-test check
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q $(AT_ONCE) $(PYTEST)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=90
	$(BIN)/coverage report --include='$(PURE)' --fail-under=100

test-interop: packages-test $(LEFT)/test
	$(BIN)/python -m pytest -v -rs tests/interop $(PYTEST)

test-tokens: packages-tokens $(LEFT)/test
	@$(if $(PYTEST),,rm -f tests/tokens/results.json)
	$(BIN)/python -m pytest -q -m tokens tests/tokens --tokens-results tests/tokens/results.json $(PYTEST); \
		status=$$?; \
	sh tests/tokens/trixie.sh run $(VENV)/trixie tests/tokens python -m pytest -q -m tokens tests/tokens \
		-p no:cacheprovider -k 'yubihsm or swtpm13' --tokens-results /out/results.json $(PYTEST); \
		inside=$$?; test $$inside = 77 || test $$status != 0 || status=$$inside; \
	$(BIN)/python -m tests.tokens.matrix; exit $$status

deb: packages-deb $(LEFT)/venv
	@$(BIN)/python systemd/deb/build.py $(DEB)

test-boot: packages-boot $(LEFT)/test
	$(BIN)/python -m pytest -v -rs -m boot tests/boot $(PYTEST)

demo: packages-demo $(LEFT)/venv
	@$(BIN)/python softhsm-test/demo.py

bench: packages-bench $(LEFT)/venv
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
