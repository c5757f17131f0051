"""The modules behind Part 3, architecture: why Ray Data behaves as it does."""
