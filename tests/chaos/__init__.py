"""Random violence against real processes."""
