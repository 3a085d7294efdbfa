"""The addresses of PERE: what is asked for, checked, and handed on. Nothing is decided here that a rule could decide."""
