"""Floor 4: the contract of techniques, the stack that orders and proves them, one file a technique."""
