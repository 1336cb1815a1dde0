"""What tfx asks of the operating system: signals, memory, how threads wait."""
