"""What a model repository is: the typed contract of the served graph, its layout and its manifest."""
