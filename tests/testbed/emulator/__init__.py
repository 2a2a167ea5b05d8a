"""An emulator of Globus Auth, Compute and Transfer, enough for the real SDK and the real endpoint."""
