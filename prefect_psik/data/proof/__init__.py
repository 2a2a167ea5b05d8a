"""The proof before a deletion: what a check collection is known to hold."""
