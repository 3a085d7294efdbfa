"""PERE: Pushed Events with return Receipt Engine."""

__version__ = "1.0.0.dev0"
