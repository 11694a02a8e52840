"""The command line: a verb a file; console.py renders. Heavy imports live inside functions."""
