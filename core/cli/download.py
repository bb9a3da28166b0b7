"""`core download`: a model from the hub or from S3 onto this machine, for a later `core serve`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from core import logs
from core.errors import ConfigError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Register the command."""
    parser = subparsers.add_parser("download", help="fetch a model from the hub or from S3")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="hub name (org/name, org/name/file.gguf) or place in S3 (s3://bucket/prefix, s3://bucket/path/file.gguf)",
    )
    parser.add_argument("--to", metavar="DIR", help="directory to fetch it into; default: the cache")
    parser.add_argument("--revision", metavar="TEXT", help="branch, tag or commit of a hub repository")


def run(args: argparse.Namespace) -> int:
    """Print the path that `core serve` takes. Raises ModelError, ConfigError."""
    logs.setup("download")
    if os.path.exists(os.path.expanduser(args.model)):
        raise ConfigError("MODEL", f"{args.model} is here already; `core serve {args.model}` serves it")
    from core.weights import source

    directory = Path(os.path.expanduser(args.to)) if args.to else None
    print(source.download(args.model, directory, revision=args.revision))
    return 0
