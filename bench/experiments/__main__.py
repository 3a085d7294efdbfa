"""python -m bench.experiments"""

from bench import experiments, rounds

rounds.main(experiments.__doc__, experiments.measures())
