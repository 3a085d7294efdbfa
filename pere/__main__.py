"""`python -m pere` is `pere`."""

from pere.cli import main

main(prog_name="pere")
