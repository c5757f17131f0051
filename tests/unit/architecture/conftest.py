"""Hypothesis draws the same inputs in every run, and no test of it has to be fast."""

from hypothesis import settings

settings.register_profile("course", derandomize=True, deadline=None, database=None)
settings.load_profile("course")
