"""The edge node: trains within its budget and keeps every update until it is settled."""
