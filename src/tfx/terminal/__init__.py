"""What a command reads from the terminal and writes to it."""
