"""What a run says of itself: lines and bars, metrics.jsonl, trackers, signs of life, traces."""
