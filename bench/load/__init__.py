"""Whole servers under load, one file for each question. Every load is aimed at 127.0.0.1, and ends."""
