"""The gateway: admits, pre-aggregates and forwards updates, relays versions and receipts."""
