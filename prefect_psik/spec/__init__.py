"""The job spec that a person types, and all of its parts."""
