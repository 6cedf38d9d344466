"""`hedgerow plan`: finds the units worth training within a memory budget, and shows them."""
