"""Groups of fields that more than one task has."""
