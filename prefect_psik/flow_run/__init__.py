"""The enclosing Prefect flow run: who calls, how blocks are loaded, and what its cancel does."""
