"""`slime fleet`: learning many segmenters, and segmenting very many images, on a Ray cluster."""
