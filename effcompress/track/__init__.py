"""Shows a run in trackers while it goes on: TensorBoard, Weights & Biases, Trackio.

Trackers are given the events of the record and change nothing. One that fails is dropped with a
warning, and the run goes on.
"""
