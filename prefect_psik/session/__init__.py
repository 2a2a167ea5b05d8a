"""One event-loop thread a process, which submits, polls and cancels for all that wait."""
