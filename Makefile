# The two commands: `make demo` and `make test`. Everything else is an npm script.
.PHONY: demo test build
.DELETE_ON_ERROR:

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-progress
	@touch $@

build: node_modules/.package-lock.json
	npm run --silent build

demo: build
	node dist/cli/main.js demo

test: build
	npm run --silent check
	npm run --silent test
