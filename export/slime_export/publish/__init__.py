"""Publishing into a model repository: changes that can be undone, and the running server that follows them."""
