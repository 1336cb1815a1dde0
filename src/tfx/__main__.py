"""`python -m tfx`."""

from tfx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
