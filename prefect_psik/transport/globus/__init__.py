"""The transport through Globus Compute, the only user of its SDK."""
