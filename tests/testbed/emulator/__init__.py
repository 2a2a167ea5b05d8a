"""An emulator of Globus Auth and Compute, enough for the real SDK and the real endpoint."""
