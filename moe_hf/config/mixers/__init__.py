"""The fields of a configuration that belong to one mixer each."""
