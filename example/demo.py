"""Show the whole path of a task on this machine: a request, its commit, SQS, the Lambda runtime, the records.

    python demo.py            sends one task of each kind and checks how they end
    python demo.py --serve    does the same, and keeps the site and its workers running

Nothing is stubbed between the view and the table: the site answers HTTP requests, moto is the SQS
server, and processes of `awslambdaric` run `lambda_tasks.handler.handler`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from demonstration.console import Console
from demonstration.infrastructure import (
    FUNCTIONS,
    LOGIN,
    CannotRun,
    SqsServer,
    Workers,
    bind,
    make_databases,
    make_login,
    prepare_environment,
    website,
)

if TYPE_CHECKING:
    from demonstration.scenario import Watcher

HERE: Final = Path(__file__).resolve().parent
PORT: Final = 8000
NEXT: Final = (
    "Next:  make serve                 the same, and a page that sends each kind and shows its records",
    "       example/shop/tasks.py      the tasks",
    "       example/README.md          how it works, and how to run it without queues",
)


def run(*, serve: bool) -> int:
    console = Console()
    console.write("django-lambda-tasks: from a request to the record, over SQS and the Lambda runtime", "")
    with ExitStack() as stack:
        server = bind(PORT if serve else 0)
        stack.callback(server.server_close)
        state = serve_state() if serve else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shop-")))
        prepare_environment(state)
        sqs = stack.enter_context(SqsServer())
        console.say("sqs", f"moto at {os.environ['AWS_ENDPOINT_URL_SQS']}, {len(FUNCTIONS)} queues")
        make_databases()
        console.say("database", "SQLite, migrated")
        site = stack.enter_context(website(server))
        console.say("site", f"{site}/")

        from demonstration.scenario import Relay, Scenario, Watcher  # their models need a configured Django

        log = state / "worker.log"
        scenario = Scenario(console, site, sqs, log)
        scenario.place_orders()
        with Workers(console, log) as workers, Relay(console):
            watcher = Watcher(console, workers)
            scenario.watch_until_ended(watcher)
            if serve:
                if not scenario.show_result():
                    return 1
                make_login()
                console.write(*invitation(site, log))
                keep_up(watcher)
            console.say("demo", "stops the workers")
        if not serve:
            if not scenario.show_result():
                return 1
            console.write("", *NEXT)
    return 0


def serve_state() -> Path:
    """Return an empty directory for the databases of --serve, because its queues are empty too."""
    state = HERE / ".state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    return state


def invitation(site: str, log: Path) -> tuple[str, ...]:
    return (
        "",
        f"Page:   {site}/",
        f"Admin:  {site}/admin/   login {LOGIN[0]}, password {LOGIN[1]}",
        f"Log:    {log.relative_to(HERE.parent)}",
        "Press Ctrl-C to stop.",
        "",
    )


def keep_up(watcher: Watcher) -> None:
    """Print what happens until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        while True:
            watcher.look()
            time.sleep(0.2)


def on_sigterm(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help=f"keep the site running at http://127.0.0.1:{PORT}/")
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        return run(serve=parser.parse_args().serve)
    except CannotRun as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; everything is stopped.", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
