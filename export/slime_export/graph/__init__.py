"""The exported graphs: what is traced, in which precision, and which engine it becomes."""
