"""`python -m unclip.cli`."""

from unclip.cli import main

main()
