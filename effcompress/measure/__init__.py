"""Measuring what criteria need, and nothing else."""
