"""mp-export --model: a network of the user's own code."""
