"""The `specplug` command; each file registers a group of commands."""

from hf_specplug.cli import (  # noqa: F401
    audit,
    bench,
    datastores,
    decoding,
    run_program,
)
from hf_specplug.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    app()
