"""The contract of techniques, the stack that orders them, and one file or folder per technique."""
