"""The tables of docs/RESULTS.md, made from the files under docs/results."""
