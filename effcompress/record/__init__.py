"""What a run says of itself: events, the record, its views, a heartbeat and `status`."""
