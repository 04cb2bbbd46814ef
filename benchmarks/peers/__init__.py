"""What a user would pick instead of a bundle, each in an environment of its own, side by side with it."""
