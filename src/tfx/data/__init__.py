"""Text sources, tokenizer, and which rows form a batch."""
