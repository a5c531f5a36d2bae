"""What goes, when, and how much: decisions only."""
