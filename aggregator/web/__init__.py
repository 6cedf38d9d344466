"""The aggregator's HTTP service: the gateways' API and the status page."""
