"""What the package costs, beside its peers in the same run; `make bench` prints it. Nothing here is a test."""
