"""A load on a server, from outside: many devices, one publisher, and a clock.

`pere bench` is told here as verbs (`crew.py`), as what each process does (`fleet.py`), and as stories (`scenarios.py`). It knows of a
server only its addresses, so it also drives servers that are not PERE.
"""
