"""The configs that ship with tfx: one folder a group, one YAML a choice."""
