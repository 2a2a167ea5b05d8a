"""Many calls through Globus Compute while everything misbehaves at random: `make soak`."""
