"""`python -m p2pgrid`."""

from p2pgrid.cli.main import main

main()
