"""The benchmarks of PERE: what it costs, beside what nothing can cost less than. `bench/README.md` tells what is asked, and what came of it."""
