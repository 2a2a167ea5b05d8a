"""One suite for both transports, on every client Python and every engine: `make conformance`."""
