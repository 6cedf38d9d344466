"""The aggregator: merges partial aggregates into versions and keeps the ledger."""
