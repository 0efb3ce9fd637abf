"""The `specplug` command; each file registers a group of commands."""

from hf_specplug.cli import bench, datastore_commands, decoding  # noqa: F401
from hf_specplug.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    app()
