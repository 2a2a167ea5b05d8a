"""`make coverage`: which lines and branches the tests execute, also in the letter and in other processes."""
