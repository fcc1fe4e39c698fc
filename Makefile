# make run    the app on http://127.0.0.1:7860; the first run makes .venv and installs what it needs
# make test   the whole test suite
# make lint   style
#
# PYTHON=...  another interpreter (3.10 to 3.12) for .venv        ARGS="..."  options for app.py, or for pytest

.PHONY: run test lint chromium clean
VENV := .venv
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
SUPPORTED := import sys, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))

run: $(VENV)/installed
	@$(VENV)/bin/python app.py $(ARGS)

test: $(VENV)/installed-dev chromium
	@$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/installed-dev
	@$(VENV)/bin/ruff check .

clean:
	rm -rf $(VENV)

# The machine's own python3 comes first: packages built for it are the likeliest to be at hand.
$(VENV)/made:
	@for python in $(or $(PYTHON),python3 python3.12 python3.11 python3.10); do \
	  if "$$python" -c '$(SUPPORTED)' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" --version) ..."; \
	    "$$python" -m venv --clear $(VENV) && touch $@ && exit 0; \
	  fi; \
	done; \
	echo "No Python 3.10, 3.11 or 3.12 with venv was found on PATH." >&2; \
	echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

$(VENV)/installed: requirements.txt $(VENV)/made
	@echo "Installing the app's requirements (once; some minutes) ..."
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo "Installing what the tests need ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

# The browser tests drive the system's Chromium. apt-get is tried where it can run without asking for a password.
chromium:
	@for browser in chromium chromium-browser google-chrome; do command -v $$browser >/dev/null && exit 0; done; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
	  echo "Installing Chromium for the browser tests ..."; \
	  $$sudo apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq chromium >/dev/null && exit 0; \
	fi; \
	echo "The browser tests need Chromium, and it could not be installed here." >&2; \
	echo "Install it with the system's package manager (apt-get install chromium, dnf install chromium, ...)" >&2; \
	echo "so that 'chromium' is on PATH, then run 'make test' again." >&2; \
	exit 1
