# Bare `make` lists the targets: their comments after ## are the list.

GO            ?= go
QUICK         ?=
SEEDS         ?= 200
FUZZTIME      ?= 15s
MINUTES       ?= 60
MODEL         ?= ci
TESTFLAGS     ?=
E2EFLAGS      ?=
SMOKE         ?= ./e2e/cmd/e2e run smoke

# Built from source, because nothing else of it can be had here; the folder's name
# has the version, so that a new pin is a new build.
GOLANGCI_VERSION := v2.15.0
GOLANGCI         := .cache/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

.DEFAULT_GOAL := help
.PHONY: help build install demo test race fuzz lint sim faults model smoke e2e bench takeover soak clean

help:
	@echo 'Tandem. Targets:'
	@awk -F ':[^#]*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

build: ## bin/replagent and bin/replctl
	$(GO) build -trimpath -o bin/ ./cmd/replagent ./cmd/replctl

install: build ## programs, unit, module and sysctl settings onto this host (DESTDIR=...); /etc/tandem for the config
	install -D -m 755 -t $(DESTDIR)/usr/local/sbin bin/replagent bin/replctl
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system deploy/replagent@.service
	install -D -m 644 deploy/tandem-modprobe.conf $(DESTDIR)/etc/modprobe.d/tandem.conf
	install -D -m 644 deploy/tandem-sysctl.conf $(DESTDIR)/etc/sysctl.d/60-tandem.conf
	install -d -m 700 $(DESTDIR)/etc/tandem

demo: ## a pair on this machine, its primary killed in mid-write: nothing is lost (needs Go only)
	@$(GO) build -trimpath -o bin/ ./cmd/replctl
	@bin/replctl demo

# These play with several real agents and look at the clock, so they get the
# machine to themselves, one after the other.
HEAVY := ./agent/demo ./agent/proctest ./bench ./cmd/replctl
LIGHT  = $$($(GO) list ./... | grep -v -e /agent/demo$$ -e /agent/proctest$$ -e /bench$$ -e /cmd/replctl$$)

test: ## all tests, with real NBD clients: installs those when root (TESTFLAGS=...)
	@tools/need test
	TANDEM_REQUIRE_TOOLS=1 $(GO) test -timeout 20m $(TESTFLAGS) $(LIGHT)
	TANDEM_REQUIRE_TOOLS=1 $(GO) test -timeout 20m $(TESTFLAGS) -p 1 $(HEAVY)

# proctest's agents are processes of their own, built without the detector: it
# would see nothing there but the tests.
race: ## the tests under the race detector
	@tools/need test race
	TANDEM_REQUIRE_TOOLS=1 CGO_ENABLED=1 $(GO) test -race -timeout 20m $(TESTFLAGS) $(LIGHT)
	TANDEM_REQUIRE_TOOLS=1 CGO_ENABLED=1 $(GO) test -race -short -timeout 20m $(TESTFLAGS) ./agent/demo ./bench ./cmd/replctl

fuzz: ## what the fuzz corpora reach, and every target for a while (FUZZTIME=15s)
	@tools/fuzzcover
	@tools/fuzz $(FUZZTIME)

lint: $(GOLANGCI) ## gofmt, go vet and golangci-lint; the first time builds the latter, minutes
	@files=$$(gofmt -l .) && [ -z "$$files" ] || { echo "not as gofmt has it:" $$files; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags faults,mutant ./...
	$(GOLANGCI) run ./...

$(GOLANGCI):
	GOBIN=$(abspath $(@D)) $(GO) install -trimpath github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

sim: ## simulated lives of a cluster with faults of all kinds (SEEDS=200)
	$(GO) run ./cmd/simulate --seeds $(SEEDS)

faults: ## of the tests those that kill the real agent before and after each durable effect
	@tools/need test
	TANDEM_REQUIRE_TOOLS=1 $(GO) test -run Fault -count=1 -timeout 20m $(TESTFLAGS) ./agent/proctest

model: ## the takeover rules checked with spin, every run of the set (MODEL=ci; MODEL=soak: an hour)
	@tools/need model
	@tools/model $(MODEL)

smoke: ## two virtual machines: ext4 and XFS on /dev/nbd0, a power cut, a promotion (needs root)
	$(GO) run $(SMOKE)

e2e: ## all scenarios in virtual machines, about half an hour: kernel NBD, ext4 and XFS, kernel NFS, power cuts, cut links (needs root; E2EFLAGS='-full 3 7')
	$(GO) run ./e2e/cmd/e2e run $(E2EFLAGS)

bench: build ## against nbdkit unmirrored on tmpfs; QUICK=1 takes 4 minutes, else 15 (BENCHFLAGS=...)
	@tools/need bench
	@$(GO) run ./bench $(if $(QUICK),-quick) $(BENCHFLAGS)

takeover: build ## 20 kills of the primary and 10 moves, with a lease of 3 s and one of 1 s: how long clients wait
	@$(GO) run ./bench takeover -lease 3s
	@$(GO) run ./bench takeover -lease 1s

soak: ## the models' long runs, 50 rounds of faults with their table and plot, takeover, then new simulated lives and the demo, for MINUTES=60
	@tools/need model
	@tools/soak $(MINUTES)

clean: ## remove what was built here
	rm -rf bin .cache
