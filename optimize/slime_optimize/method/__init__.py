"""The method: attention maps, losses, the optimisation of text embeddings, and prediction with them."""
