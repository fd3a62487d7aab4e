# For those who change the code. To use Esteira, type ./esteira.
.PHONY: install lint format test

PYTHON := .venv/bin/python
SHELL_FILES := $(shell git ls-files esteira .ci/run '*.sh')

# The launcher makes .venv; the tools for development come on top, only when their list has changed.
install: .venv/.dev-stamp

.venv/.dev-stamp: requirements.txt requirements-dev.txt
	./esteira --version
	$(PYTHON) -m pip install --quiet -r requirements-dev.txt
	touch $@

lint: install
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/yamllint --strict .
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/shellcheck $(SHELL_FILES)

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test:
	./esteira test
