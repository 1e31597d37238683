# make run ARGS="listenPort=10921 …"; make test ARGS="tests/store -x"; make bench ARGS="--rounds 1 send"

.PHONY: run test lint bench
ARGS =

run: # name server on 9876 and broker on 10911 in one process, data under ./data, until Ctrl-C
	@sh bin/setup
	@exec .venv/bin/pocketmq $(ARGS)

test: # everything, the official clients included where there are a JDK and Maven
	@sh bin/setup test
	@exec .venv/bin/python -m pytest $(ARGS)

lint:
	@sh bin/setup test,lint
	.venv/bin/ruff check
	.venv/bin/mypy

bench: # side by side with the official broker; needs a quiet machine
	@sh bin/setup bench
	@exec .venv/bin/python tests/bench/run.py $(ARGS)
