"""Metrics in percent, each by its official definition."""
