"""What moves data: Globus Transfer, or a thread on this machine."""
