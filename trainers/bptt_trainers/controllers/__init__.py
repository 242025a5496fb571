"""What acts: controllers, the networks they are of, and which system has which."""
