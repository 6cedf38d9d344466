"""Hedgerow: intermittent fleets of small devices train one model together."""

__version__ = "0.1.0"
