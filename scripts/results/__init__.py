"""The tables of docs/RESULTS.md, built from the files in docs/results."""
