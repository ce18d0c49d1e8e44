"""Where models come from, one module each behind `base.PullSource`."""
