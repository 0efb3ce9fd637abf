"""`python -m hf_specplug.cli`."""

from hf_specplug.cli import main

main()
