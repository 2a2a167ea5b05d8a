"""WHAT a person types: the job spec, and all that it is made of."""
