"""What became of a job: answers of the facility -> what they mean. Pure functions."""
