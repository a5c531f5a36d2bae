"""A run, shown to trackers while it goes on: TensorBoard, Weights & Biases, Trackio.

They see what the record says and change nothing: one that fails is left alone, and the run goes on.
"""

from effcompress.track.view import watch

__all__ = ["watch"]
