"""The Prefect flow run around us: who calls, where it looks for blocks, and its cancel."""
