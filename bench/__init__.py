"""The benchmarks of PERE. `python -m bench` runs the small ones and prints what each operation costs."""
