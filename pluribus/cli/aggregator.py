"""`pluribus aggregator`: sums chunks of several ranks in the middle of the network."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from pluribus.cli.output import console
from pluribus.core.errors import MissingFileError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="IP address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=29600, help="TCP port (29600; 0: any)")
    parser.add_argument("--token-file", help="file with the ranks' token; needed beyond loopback")


def run(arguments: argparse.Namespace) -> int:
    from pluribus.comm.aggregator import Aggregator

    token = ""
    if arguments.token_file:
        path = Path(arguments.token_file)
        if not path.is_file():
            raise MissingFileError("no such file", where=str(path), do="Name the token's file.")
        token = path.read_text().strip()
    aggregator = Aggregator(arguments.host, arguments.port, token)
    host, port = aggregator.address
    console.print(f"summing; ranks find it by PLURIBUS_COMM_AGGREGATOR={host}:{port}")
    aggregator.serve(threading.Event())
    return 0
