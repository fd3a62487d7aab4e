# For those who change the code. To use Esteira, type ./esteira.
.PHONY: install lint format test

PYTHON := .venv/bin/python
SHELL_FILES := $(shell git ls-files esteira .ci/run '*.sh' ':!components/server')
DOCKERFILES := $(shell git ls-files '*Dockerfile*')
# What runs on a server is one program in several files: it is checked as it is sent. Its function docker is for itself;
# what xargs starts is meant to be the real one (SC2032, SC2033), and the last line is never reached (SC2317, SC2329).
SERVER_PROGRAM := 'from components.remote import Payload, compound; print(compound(Payload()))'

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
	.venv/bin/check-jsonschema --quiet --schemafile docs/stack.schema.json Pulumi.*.yaml template/Pulumi.*.yaml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.gitlab-ci .gitlab-ci.yml
	.venv/bin/hadolint --failure-threshold warning $(DOCKERFILES)
	.venv/bin/rumdl check --no-cache --quiet .
	.venv/bin/shellcheck $(SHELL_FILES)
	$(PYTHON) -c $(SERVER_PROGRAM) | .venv/bin/shellcheck --shell=sh --exclude=SC2032,SC2033,SC2317,SC2329 -

format: install
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test:
	./esteira test
