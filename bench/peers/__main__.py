"""python -m bench.peers"""

from bench import peers, rounds

rounds.main(peers.__doc__, peers.measures())
