"""Floor 2: sources, tokenizer, batches."""
