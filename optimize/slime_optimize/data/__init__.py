"""Annotated images: people's annotations, published data sets, and validation images."""
