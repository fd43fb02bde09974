"""Hypothesis and atheris against every parser of what comes from outside: only declared errors ever come out."""
