"""A run's life, from its acceptance to the deletion of its stored outputs."""
