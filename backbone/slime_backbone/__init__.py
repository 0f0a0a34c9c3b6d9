"""The embedded backbone: a small Stable Diffusion and PartScenes, the annotated scenes it knows."""
