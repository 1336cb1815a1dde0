"""The processes of one run: which there are, how they are started, and how they agree."""
