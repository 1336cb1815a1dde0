"""What runs show when they are compared: statistics, tables, plots, one page. Reads files, never models."""
