"""The proof before a deletion: which files a check collection is known to hold."""
