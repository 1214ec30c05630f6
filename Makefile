# The two commands: `make demo` and `make test`. Everything else is an npm script.
.PHONY: demo test build example node
.DELETE_ON_ERROR:

demo: build
	node dist/cli/main.js demo

test: build
	npm run --silent check
	npm run --silent test

example: build
	npx tsc -p examples
	node examples/dist/train-and-generate.js

build: node_modules/.package-lock.json
	npm run --silent build

node_modules/.package-lock.json: package.json package-lock.json | node
	npm ci --no-progress
	@touch $@

node:
	@node -e 'const [a, b] = process.versions.node.split("."); if (a < 20 || (a == 20 && b < 19)) { console.error("error: milora needs Node 20.19 or newer, this is " + process.version); process.exit(1) }'
