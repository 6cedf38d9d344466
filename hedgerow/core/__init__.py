"""The pure core: messages, aggregation, plans. No clock, socket, thread or file."""
